//! Keeps a 4 KiB marker in private memory and, with `--share`, another one in a page it shares on purpose.
//!
//! The markers are computed, so that they stand in no file. `secret SEED [--share] [--copies N]` prints the first
//! bytes of the private marker, and ends. What a bus probe then finds of it is the question.
#![allow(unsafe_code)] // madvise

/// The advice by which a process guest asks for pages to be shared with the hypervisor (`docs/guide.md`).
const MADV_SEV_SHARE: i32 = 0x5345_5601;

fn marker(seed: u64) -> Vec<u8> {
    let mut s = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut out = Vec::with_capacity(4096);
    while out.len() < 4096 {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        out.extend_from_slice(&s.to_le_bytes());
    }
    out
}

fn page_of(bytes: &[u8]) -> *mut u8 {
    // SAFETY: a fresh anonymous mapping of one page, then a copy of one page into it.
    unsafe {
        let p = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(p, libc::MAP_FAILED, "mmap of one page");
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), p.cast(), 4096);
        p.cast()
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let seed: u64 = args
        .get(1)
        .and_then(|a| a.parse().ok())
        .expect("usage: secret SEED [--share]");
    let private = marker(seed);
    // Two pages with the same content: only the tweak can tell them apart in DRAM.
    let (first, second) = (page_of(&private), page_of(&private));
    if args.iter().any(|a| a == "--share") {
        let shared = page_of(&[0; 4096]);
        // SAFETY: `shared` is one whole mapped page of this program's.
        let r = unsafe { libc::madvise(shared.cast(), 4096, MADV_SEV_SHARE) };
        println!("share: {}", if r == 0 { "ok" } else { "refused" });
        let open = marker(seed + 1);
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(open.as_ptr(), shared, 4096) };
        std::hint::black_box(shared);
    }
    std::hint::black_box((first, second));
    println!("{seed}");
}
