//! Memory and locks that processes share, and memory that they must not.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{self, Pages, RW, child, close, ended, errno, getpid, ok, pipe};

use crate::waiting::idle;

pub fn cow(_: &Settings) -> String {
    const SIZE: usize = 8 << 20;
    let fd = sys::memfd(SIZE);
    let file = Pages::map(SIZE, RW, libc::MAP_SHARED, fd, 0);
    let regions = [
        Pages::private(SIZE, RW),
        Pages::map(SIZE, RW, libc::MAP_PRIVATE, fd, 0),
    ];
    for at in (0..SIZE).step_by(4096) {
        file.word(at).store(7, Ordering::Relaxed);
        for r in &regions {
            r.word(at).store(at as u32 ^ 1, Ordering::Relaxed);
        }
    }
    let mut local = [1u64; 512];
    let mut heap = vec![2u64; 100_000];
    let (from, to) = pipe();
    let (from2, to2) = pipe();
    let sum = |r: &Pages| -> u64 {
        (0..SIZE)
            .step_by(4096)
            .map(|at| u64::from(r.word(at).load(Ordering::Relaxed)))
            .sum()
    };
    let before = sum(&regions[0]);
    let pid = child(|| {
        // It sees what was there at the fork, whatever the parent writes now.
        sys::read(from, 1).expect("the parent has written");
        assert!(
            regions.iter().all(|r| sum(r) == before),
            "the parent's stores are the child's"
        );
        assert!(local.iter().all(|x| *x == 1) && heap.iter().all(|x| *x == 2));
        for at in (0..SIZE).step_by(8192) {
            for r in &regions {
                r.word(at).store(3, Ordering::Relaxed);
            }
        }
        local.fill(9);
        heap.fill(9);
        std::hint::black_box((&local, &heap));
        // A child of its own.
        let inner = child(|| {
            for r in &regions {
                assert_eq!(r.word(8192).load(Ordering::Relaxed), 3);
                r.word(8192).store(4, Ordering::Relaxed);
            }
            5
        });
        assert_eq!(ended(inner), "exit 5");
        assert!(
            regions
                .iter()
                .all(|r| r.word(8192).load(Ordering::Relaxed) == 3)
        );
        sys::write(to2, b"x");
        6
    });
    for at in (0..SIZE).step_by(4096).skip(1).step_by(3) {
        for r in &regions {
            r.word(at).store(11, Ordering::Relaxed);
        }
    }
    local.fill(8);
    heap.fill(8);
    std::hint::black_box((&local, &heap));
    let mine = sum(&regions[0]);
    sys::write(to, b"x");
    sys::read(from2, 1).expect("the child has written");
    assert!(
        regions.iter().all(|r| sum(r) == mine),
        "the child's stores are the parent's"
    );
    assert!(local.iter().all(|x| *x == 8) && heap.iter().all(|x| *x == 8));
    assert_eq!(
        sum(&file),
        7 * (SIZE as u64 / 4096),
        "private stores are in the file"
    );
    let status = ended(pid);
    for end in [from, to, from2, to2, fd] {
        close(end);
    }
    // Read-only, and unmapped, for the child only.
    let pid = child(|| {
        regions[0].protect(libc::PROT_READ);
        // SAFETY: unmaps a page of the child's copy that nothing refers to.
        unsafe { libc::munmap(regions[1].start().cast(), 4096) };
        7
    });
    let second = ended(pid);
    for r in &regions {
        r.word(0).fetch_add(1, Ordering::Relaxed);
    }
    // Pages the child does not get, and those it gets empty.
    // SAFETY: advice on pages of this function's.
    unsafe {
        ok(
            "madvise",
            libc::madvise(regions[0].start().cast(), 4096, libc::MADV_WIPEONFORK),
        );
    }
    let pid = child(|| regions[0].word(0).load(Ordering::Relaxed) as i32 + 8);
    format!("{before} {mine}, {status}, {second}, wiped {}", ended(pid))
}

pub fn counters(s: &Settings) -> String {
    let page = Pages::shared(8192);
    let n = s.count * 20;
    let pids: Vec<i32> = (0..s.threads)
        .map(|i| {
            let page = &page;
            child(|| {
                for k in 0..n {
                    page.quad(0).fetch_add(1, Ordering::Relaxed);
                    page.word(64).fetch_xor(1 << (k % 32), Ordering::Relaxed);
                    // Nobody else's word, beside the others'.
                    let own = page.quad(4096 + 8 * i);
                    own.store(own.load(Ordering::Relaxed) + k, Ordering::Relaxed);
                    let mut old = page.quad(128).load(Ordering::Relaxed);
                    while let Err(now) = page.quad(128).compare_exchange_weak(
                        old,
                        old.wrapping_mul(3).wrapping_add(1),
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    ) {
                        old = now;
                    }
                }
                0
            })
        })
        .collect();
    for pid in pids {
        assert_eq!(ended(pid), "exit 0");
    }
    let total = n * s.threads as u64;
    assert_eq!(
        page.quad(0).load(Ordering::Relaxed),
        total,
        "lost increments"
    );
    let mut expected = 0u64;
    for _ in 0..total {
        expected = expected.wrapping_mul(3).wrapping_add(1);
    }
    assert_eq!(
        page.quad(128).load(Ordering::Relaxed),
        expected,
        "lost exchanges"
    );
    for i in 0..s.threads {
        assert_eq!(
            page.quad(4096 + 8 * i).load(Ordering::Relaxed),
            n * (n - 1) / 2
        );
    }
    let mut bits = 0u32;
    for k in 0..n {
        bits ^= if s.threads % 2 == 1 { 1 << (k % 32) } else { 0 };
    }
    assert_eq!(page.word(64).load(Ordering::Relaxed), bits, "lost flips");
    format!("{} processes, {total} increments, {expected:#x}", s.threads)
}

/// What lies in the shared memory object.
#[repr(C)]
struct Shared {
    mutex: libc::pthread_mutex_t,
    condition: libc::pthread_cond_t,
    semaphore: libc::sem_t,
    barrier: libc::pthread_barrier_t,
    turn: u32,
    plain: u64,
    guarded: u64,
    log: [u8; 64],
}

pub fn shm(s: &Settings) -> String {
    const PROCESSES: u32 = 4;
    let name = std::ffi::CString::new(format!("/procs-{}", getpid())).expect("no NUL");
    let open = |flags| {
        // SAFETY: a C string.
        let fd = unsafe { libc::shm_open(name.as_ptr(), libc::O_RDWR | flags, 0o600) };
        ok("shm_open", fd)
    };
    let fd = open(libc::O_CREAT | libc::O_EXCL);
    // SAFETY: a plain number.
    ok("ftruncate", unsafe { libc::ftruncate(fd, 4096) });
    let page = Pages::map(4096, RW, libc::MAP_SHARED, fd, 0);
    let shared = page.start().cast::<Shared>();
    // SAFETY: the page is large and aligned enough, and zero; the C library initialises its parts.
    unsafe {
        let mut attribute: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attribute);
        libc::pthread_mutexattr_setpshared(&raw mut attribute, libc::PTHREAD_PROCESS_SHARED);
        assert_eq!(
            libc::pthread_mutex_init(&raw mut (*shared).mutex, &raw const attribute),
            0
        );
        let mut attribute: libc::pthread_condattr_t = std::mem::zeroed();
        libc::pthread_condattr_init(&raw mut attribute);
        libc::pthread_condattr_setpshared(&raw mut attribute, libc::PTHREAD_PROCESS_SHARED);
        assert_eq!(
            libc::pthread_cond_init(&raw mut (*shared).condition, &raw const attribute),
            0
        );
        let mut attribute: libc::pthread_barrierattr_t = std::mem::zeroed();
        libc::pthread_barrierattr_init(&raw mut attribute);
        libc::pthread_barrierattr_setpshared(&raw mut attribute, libc::PTHREAD_PROCESS_SHARED);
        let barrier = &raw mut (*shared).barrier;
        assert_eq!(
            libc::pthread_barrier_init(barrier, &raw const attribute, PROCESSES),
            0
        );
        ok(
            "sem_init",
            libc::sem_init(&raw mut (*shared).semaphore, 1, 2),
        );
    }
    let rounds = s.count;
    let pids: Vec<i32> = (0..PROCESSES)
        .map(|me| {
            child(|| {
                // Each finds it by name, at an address of its own.
                let fd = open(0);
                let page = Pages::map(4096, RW, libc::MAP_SHARED, fd, 0);
                let shared = page.start().cast::<Shared>();
                // SAFETY: the parent has initialised it; what is not atomic changes under the mutex only.
                unsafe {
                    libc::pthread_barrier_wait(&raw mut (*shared).barrier);
                    for _ in 0..rounds {
                        libc::pthread_mutex_lock(&raw mut (*shared).mutex);
                        let old = (&raw const (*shared).plain).read_volatile();
                        (&raw mut (*shared).plain).write_volatile(old + 1);
                        libc::pthread_mutex_unlock(&raw mut (*shared).mutex);
                    }
                    // In turns.
                    for round in 0..16u32 {
                        libc::pthread_mutex_lock(&raw mut (*shared).mutex);
                        while (&raw const (*shared).turn).read_volatile() != round * PROCESSES + me
                        {
                            libc::pthread_cond_wait(
                                &raw mut (*shared).condition,
                                &raw mut (*shared).mutex,
                            );
                        }
                        (*shared).log[(round * PROCESSES + me) as usize] = b'a' + me as u8;
                        (&raw mut (*shared).turn).write_volatile(round * PROCESSES + me + 1);
                        libc::pthread_cond_broadcast(&raw mut (*shared).condition);
                        libc::pthread_mutex_unlock(&raw mut (*shared).mutex);
                    }
                    // At most two at a time.
                    let inside = AtomicU32::from_ptr((&raw mut (*shared).guarded).cast());
                    let mut worst = 0;
                    for _ in 0..rounds {
                        while libc::sem_wait(&raw mut (*shared).semaphore) < 0 {}
                        worst = worst.max(inside.fetch_add(1, Ordering::AcqRel) + 1);
                        inside.fetch_sub(1, Ordering::AcqRel);
                        libc::sem_post(&raw mut (*shared).semaphore);
                    }
                    i32::from(worst > 2)
                }
            })
        })
        .collect();
    let statuses: Vec<String> = pids.iter().map(|p| ended(*p)).collect();
    // SAFETY: all children have ended.
    let (plain, log, value) = unsafe {
        let mut value = 0;
        libc::sem_getvalue(&raw mut (*shared).semaphore, &raw mut value);
        ok("shm_unlink", libc::shm_unlink(name.as_ptr()));
        (
            (*shared).plain,
            String::from_utf8_lossy(&(*shared).log).into_owned(),
            value,
        )
    };
    close(fd);
    assert_eq!(
        plain,
        rounds * u64::from(PROCESSES),
        "lost increments under the mutex"
    );
    // SAFETY: a C string.
    let gone = unsafe { libc::shm_open(name.as_ptr(), libc::O_RDWR, 0) };
    // A named semaphore, too.
    // SAFETY: C strings, and a semaphore of the C library's.
    let named = unsafe {
        let sem = libc::sem_open(
            name.as_ptr(),
            libc::O_CREAT | libc::O_EXCL,
            0o600 as libc::c_uint,
            0 as libc::c_uint,
        );
        assert_ne!(sem, libc::SEM_FAILED, "sem_open failed with {}", errno());
        let pid = child(|| {
            while libc::sem_wait(sem) < 0 {}
            4
        });
        libc::sem_post(sem);
        let status = ended(pid);
        libc::sem_close(sem);
        libc::sem_unlink(name.as_ptr());
        status
    };
    format!(
        "{plain} under the mutex, {log}, semaphore {value}, {}, gone {gone}, named {named}",
        statuses.join(" ")
    )
}

/// A futex is a place in a file, not an address.
pub fn futex(s: &Settings) -> String {
    let fd = sys::memfd(8192);
    let mine = Pages::map(8192, RW, libc::MAP_SHARED, fd, 0);
    let rounds = (s.count / 2) as u32;
    let pid = child(|| {
        let other = Pages::map(8192, RW, libc::MAP_SHARED, fd, 0);
        assert_ne!(other.start(), mine.start());
        let word = other.word(4096 + 8);
        for round in 0..rounds {
            // Waits for odd values, answers with even ones.
            while word.load(Ordering::Acquire) != 2 * round + 1 {
                let _ = sys::futex_wait(word, 2 * round, Some(Duration::from_secs(20)), 0);
            }
            word.store(2 * round + 2, Ordering::Release);
            sys::futex_wake(word, 1, 0);
        }
        3
    });
    let word = mine.word(4096 + 8);
    for round in 0..rounds {
        word.store(2 * round + 1, Ordering::Release);
        sys::futex_wake(word, 1, 0);
        while word.load(Ordering::Acquire) != 2 * round + 2 {
            match sys::futex_wait(word, 2 * round + 1, Some(Duration::from_secs(20)), 0) {
                Ok(()) | Err(libc::EAGAIN | libc::EINTR) => {}
                Err(e) => panic!("futex wait failed with {e}: a lost wake-up"),
            }
        }
    }
    let status = ended(pid);
    // Private memory is another futex after fork.
    let private = Pages::private(4096, RW);
    let (from, to) = pipe();
    let pid = child(|| {
        sys::write(to, b"x");
        let r = sys::futex_wait(
            private.word(0),
            0,
            Some(Duration::from_millis(150)),
            libc::FUTEX_PRIVATE_FLAG,
        );
        i32::from(r == Err(libc::ETIMEDOUT)) + 40
    });
    sys::read(from, 1).expect("the child is there");
    sys::pause_ms(50);
    let woken = sys::futex_wake(private.word(0), 10, libc::FUTEX_PRIVATE_FLAG);
    let second = ended(pid);
    let different = sys::futex_wait(private.word(0), 1, None, 0);
    for end in [fd, from, to] {
        close(end);
    }
    format!("{rounds} rounds, {status}, private woken {woken} {second}, other value {different:?}")
}

pub fn locks(_: &Settings) -> String {
    let mut out = Vec::new();
    let fd = sys::memfd(100);
    let lock = |fd: i32, command: i32, kind: i32, start: i64, len: i64| -> (i32, libc::flock) {
        // SAFETY: a lock of this function's.
        unsafe {
            let mut l: libc::flock = std::mem::zeroed();
            l.l_type = kind as libc::c_short;
            l.l_whence = libc::SEEK_SET as libc::c_short;
            l.l_start = start;
            l.l_len = len;
            let r = libc::fcntl(fd, command, &raw mut l);
            (if r < 0 { errno() } else { 0 }, l)
        }
    };
    assert_eq!(lock(fd, libc::F_SETLK, libc::F_WRLCK, 10, 20).0, 0);
    let parent = getpid();
    let pid = child(|| {
        let (refused, _) = lock(fd, libc::F_SETLK, libc::F_WRLCK, 25, 1);
        let (beside, _) = lock(fd, libc::F_SETLK, libc::F_WRLCK, 30, 5);
        let (_, who) = lock(fd, libc::F_GETLK, libc::F_RDLCK, 0, 100);
        let good = refused == libc::EAGAIN && beside == 0 && who.l_pid == parent;
        let good =
            good && i32::from(who.l_type) == libc::F_WRLCK && (who.l_start, who.l_len) == (10, 20);
        // Waits for the parent to let go.
        let (waited, _) = lock(fd, libc::F_SETLKW, libc::F_WRLCK, 10, 20);
        i32::from(good && waited == 0)
    });
    sys::pause_ms(50);
    assert_eq!(lock(fd, libc::F_SETLK, libc::F_UNLCK, 0, 100).0, 0);
    out.push(format!("record {}", ended(pid)));
    // The child's locks went with it.
    assert_eq!(
        lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 100).0,
        0,
        "a dead process's locks"
    );

    let path = format!("/tmp/procs-lock-{}", getpid());
    let c_path = std::ffi::CString::new(path.clone()).expect("no NUL");
    let open = || {
        // SAFETY: a C string.
        ok("open", unsafe {
            libc::open(c_path.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600)
        })
    };
    let first = open();
    let flock = |fd, how| {
        // SAFETY: plain numbers.
        if unsafe { libc::flock(fd, how) } < 0 {
            errno()
        } else {
            0
        }
    };
    assert_eq!(flock(first, libc::LOCK_EX), 0);
    let pid = child(|| {
        let second = open();
        let refused = flock(second, libc::LOCK_EX | libc::LOCK_NB);
        // It has the parent's lock by the inherited descriptor, and may give it up.
        let same = flock(first, libc::LOCK_EX | libc::LOCK_NB);
        flock(first, libc::LOCK_UN);
        let now = flock(second, libc::LOCK_EX | libc::LOCK_NB);
        i32::from(refused == libc::EWOULDBLOCK && same == 0 && now == 0)
    });
    out.push(format!("flock {}", ended(pid)));
    close(first);
    close(fd);
    std::fs::remove_file(&path).expect("the lock file goes");
    out.join(", ")
}

fn robust_mutex(mutex: *mut libc::pthread_mutex_t, shared: bool) {
    // SAFETY: the C library initialises a mutex of the caller's.
    unsafe {
        let mut attribute: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attribute);
        libc::pthread_mutexattr_setrobust(&raw mut attribute, libc::PTHREAD_MUTEX_ROBUST);
        if shared {
            libc::pthread_mutexattr_setpshared(&raw mut attribute, libc::PTHREAD_PROCESS_SHARED);
        }
        assert_eq!(libc::pthread_mutex_init(mutex, &raw const attribute), 0);
    }
}

pub fn robust(_: &Settings) -> String {
    let page = Pages::shared(4096);
    let place = |n: usize| {
        page.start()
            .wrapping_add(256 * n)
            .cast::<libc::pthread_mutex_t>()
    };
    let mut out = Vec::new();
    // The owner is a thread that ends.
    robust_mutex(place(0), false);
    let address = place(0) as usize;
    std::thread::spawn(move || {
        // SAFETY: the mutex is initialised, and outlives the thread.
        let r = unsafe { libc::pthread_mutex_lock(address as *mut libc::pthread_mutex_t) };
        assert_eq!(r, 0);
    })
    .join()
    .expect("the thread ends");
    let after = |mutex| {
        // SAFETY: as above.
        unsafe {
            let first = libc::pthread_mutex_lock(mutex);
            let consistent = libc::pthread_mutex_consistent(mutex);
            let unlocked = libc::pthread_mutex_unlock(mutex);
            format!(
                "{first} {consistent} {unlocked} {}",
                libc::pthread_mutex_trylock(mutex)
            )
        }
    };
    out.push(after(place(0)));
    // A process that is killed while this one waits for it, and one that ends with two of them held.
    for n in 1..4 {
        robust_mutex(place(n), true);
    }
    let (from, to) = pipe();
    let pid = child(|| {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_lock(place(1)) };
        sys::write(to, b"x");
        idle()
    });
    sys::read(from, 1).expect("the child has it");
    let killer = std::thread::spawn(move || {
        sys::pause_ms(50);
        sys::kill(pid, libc::SIGTERM);
    });
    out.push(after(place(1)));
    killer.join().expect("it ends");
    out.push(ended(pid));
    let pid = child(|| {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_lock(place(2)) + libc::pthread_mutex_lock(place(3)) }
    });
    out.push(ended(pid));
    out.push(after(place(3)));
    // Not made consistent: nobody gets it any more.
    // SAFETY: as above.
    unsafe {
        let first = libc::pthread_mutex_lock(place(2));
        libc::pthread_mutex_unlock(place(2));
        out.push(format!(
            "{first} then {}",
            libc::pthread_mutex_lock(place(2))
        ));
    }
    // An exec gives it up as well.
    let pid = child(|| {
        robust_mutex(place(4), true);
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_lock(place(4)) };
        crate::exec::execve("/bin/true", &["true"], &[])
    });
    out.push(ended(pid));
    out.push(after(place(4)));
    close(from);
    close(to);
    out.join(", ")
}
