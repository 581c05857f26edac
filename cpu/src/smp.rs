//! Several vCPUs of one machine: who runs guest code, how one of them stops the others, and what they
//! tell each other.
//!
//! Each vCPU belongs to one host thread and touches guest memory through a fast TLB of its own, without
//! locks. What takes an access right away (unmapping, protecting, making a page code, changing its state)
//! is done in an *exclusive section*: every other vCPU is outside of guest code, and before it goes on it
//! reads its mail, which says what it has to forget. That is the shootdown of a real machine, with the
//! acknowledgement of the other processors as the way out of guest code.
//!
//! Invariants:
//! 1. A vCPU probes its fast TLB, walks page tables or runs translated code only while its seat is
//!    active ([`Vcpu::resume_guest`] to [`Vcpu::pause_guest`]).
//! 2. While a section is exclusive, its owner's seat is the only active one.
//! 3. A frame that holds decoded code has write tags in no fast TLB: who fills one says so in `writers`
//!    before it looks at `bits`, who decodes sets the bit before it looks at `writers`.

#![allow(unsafe_code)] // kicks a vCPU through a pointer; zeroed tables

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sevlab_arch::{PAGE_SIZE, Spa, Va};

use crate::stop::Stop;
use crate::vcpu::Vcpu;

/// Budget of a turn: so many loops and blocks.
pub const TURN: i64 = 20_000;
/// How long the owner of a coming section waits before it asks the others again.
const AGAIN: Duration = Duration::from_millis(1);

/// What another vCPU has to forget before it goes on.
#[derive(Clone, Debug)]
enum Mail {
    /// The translations of `[start, end)`, and decoded code there if so said.
    Range { start: Va, end: Va, code: bool },
    /// Decoded code in `[start, end)`.
    Drop { start: Va, end: Va },
    /// All translations.
    Flush,
    /// All translations, and the nested ones.
    Nested,
    /// What was decoded at this linear page from this frame.
    Code { page: u64, pfn: u64 },
}

/// One vCPU's place in the cluster.
pub(crate) struct Seat {
    id: u16,
    active: AtomicBool,
    has_mail: AtomicBool,
    mail: Mutex<Vec<Mail>>,
    /// The vCPU's `exit_request`, null once it is gone.
    request: std::sync::atomic::AtomicPtr<AtomicU32>,
    /// In turns: of those who wait, the one with the least of these is next; of equals, who came first.
    key: Arc<AtomicU64>,
    /// In turns: it only waits for a look at something that others may have changed.
    looks: AtomicBool,
}

impl Seat {
    /// What a table of writers says of it.
    pub(crate) fn writer(&self) -> u16 {
        self.id + 1
    }

    fn kick(&self) {
        let request = self.request.load(Ordering::Acquire);
        if !request.is_null() {
            // SAFETY: the word lies in a boxed vCPU, which takes its pointer away (under the lock of the
            // cluster's state, which whoever kicks holds) before it is freed.
            unsafe {
                (*request).store(1, Ordering::SeqCst);
            }
        }
    }
    fn send(&self, mail: Mail) {
        let mut letters = lock(&self.mail);
        match (letters.last_mut(), &mail) {
            (
                Some(Mail::Range { end, code, .. }),
                Mail::Range {
                    start,
                    end: last,
                    code: also,
                },
            ) if *end == *start && *code == *also => *end = *last,
            _ => letters.push(mail),
        }
        drop(letters);
        self.has_mail.store(true, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct State {
    seats: Vec<Arc<Seat>>,
    /// In turns: whose it is, and who waits, in order of their coming.
    turn: Option<u16>,
    queue: VecDeque<Arc<Seat>>,
    /// Who has, or waits for, the exclusive section.
    owner: Option<u16>,
    next: u16,
}

impl State {
    /// Who of the queue is next.
    fn next(&self) -> Option<usize> {
        let keys = self.queue.iter().map(|s| s.key.load(Ordering::SeqCst));
        keys.enumerate()
            .min_by_key(|(_, key)| *key)
            .map(|(at, _)| at)
    }
}

/// More than one vCPU may have a write tag of a frame.
const SEVERAL: u16 = u16::MAX;

/// The vCPUs of one machine.
pub struct Cluster {
    state: Mutex<State>,
    changed: Condvar,
    /// A section is exclusive, or about to be.
    exclusive: AtomicBool,
    /// Number of vCPUs.
    count: AtomicUsize,
    /// One vCPU runs at a time, in turns that do not depend on the host's scheduling.
    in_turns: AtomicBool,
    /// One bit a frame: it holds decoded code.
    bits: Box<[AtomicU64]>,
    /// By frame: number of the seat that may have a write tag of it, plus one.
    writers: Box<[AtomicU16]>,
    /// Which vCPU decoded from a frame, at which linear page.
    frames: Mutex<HashMap<u64, Vec<(u16, u64)>>>,
}

/// Where a cluster's tables are, for who does in other words what [`Cluster::holds`] and [`Cluster::note_writer`] do.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Frames {
    /// How many frames there are.
    pub(crate) count: u64,
    /// By frame: the one seat that may have a write tag of it, as [`Seat::writer`] says it.
    pub(crate) writers: *const u16,
    /// By frame, a bit each: it holds decoded code.
    pub(crate) code: *const u64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A zeroed table that costs memory only where it is touched.
fn zeroed<T: zerocopy::FromZeros>(n: usize) -> Box<[T]> {
    // SAFETY: all zeros is a value of a `FromZeros` type.
    unsafe { Box::new_zeroed_slice(n).assume_init() }
}

impl Cluster {
    pub(crate) fn new(frames: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            exclusive: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            in_turns: AtomicBool::new(false),
            bits: zeroed(frames.div_ceil(64) as usize),
            writers: zeroed(frames as usize),
            frames: Mutex::default(),
        })
    }

    pub(crate) fn join(&self) -> Arc<Seat> {
        let mut state = lock(&self.state);
        let seat = Arc::new(Seat {
            key: Arc::default(),
            looks: AtomicBool::new(false),
            id: state.next,
            active: AtomicBool::new(false),
            has_mail: AtomicBool::new(false),
            mail: Mutex::default(),
            request: std::sync::atomic::AtomicPtr::default(),
        });
        state.next = (state.next + 1) % SEVERAL;
        state.seats.push(Arc::clone(&seat));
        self.count.fetch_add(1, Ordering::SeqCst);
        seat
    }

    fn leave_for_good(&self, seat: &Seat) {
        let mut state = lock(&self.state);
        seat.request.store(std::ptr::null_mut(), Ordering::SeqCst);
        seat.active.store(false, Ordering::SeqCst);
        state.seats.retain(|s| s.id != seat.id);
        state.queue.retain(|s| s.id != seat.id);
        if state.turn == Some(seat.id) {
            state.turn = None;
        }
        self.count.store(state.seats.len(), Ordering::SeqCst);
        let mut frames = lock(&self.frames);
        frames.retain(|pfn, list| {
            list.retain(|(id, _)| *id != seat.id);
            if list.is_empty() {
                self.set(*pfn, false);
            }
            !list.is_empty()
        });
        drop(state);
        self.changed.notify_all();
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// From now on the vCPUs run one at a time, each until it waits for something, or its budget
    /// ([`CpuState::budget`](crate::CpuState::budget)) is used up.
    pub fn run_in_turns(&self) {
        self.in_turns.store(true, Ordering::SeqCst);
    }

    /// Whether they do.
    #[must_use]
    pub fn in_turns(&self) -> bool {
        self.in_turns.load(Ordering::Relaxed)
    }

    /// Joins the queue, unless `seat` is in it or has the turn.
    fn enqueue(&self, state: &mut State, seat: &Arc<Seat>) {
        if state.turn != Some(seat.id) && !state.queue.iter().any(|s| s.id == seat.id) {
            state.queue.push_back(Arc::clone(seat));
        }
    }

    /// Waits for `seat`'s turn.
    fn take_turn(&self, seat: &Arc<Seat>) {
        let mut state = lock(&self.state);
        self.enqueue(&mut state, seat);
        while state.turn != Some(seat.id) {
            if state.turn.is_none()
                && let Some(at) = state.next()
                && state.queue[at].id == seat.id
            {
                state.queue.remove(at);
                state.turn = Some(seat.id);
                break;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// `seat` gives its turn up; with `again` it joins the end of the queue.
    fn give_turn(&self, seat: &Arc<Seat>, again: bool) {
        let mut state = lock(&self.state);
        if state.turn == Some(seat.id) {
            state.turn = None;
        }
        if again {
            self.enqueue(&mut state, seat);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn resume(&self, seat: &Arc<Seat>) {
        if self.in_turns() {
            self.take_turn(seat);
        }
        loop {
            seat.active.store(true, Ordering::SeqCst);
            if !self.exclusive.load(Ordering::SeqCst) {
                return;
            }
            let mut state = lock(&self.state);
            if state.owner.is_none_or(|id| id == seat.id) {
                return;
            }
            seat.active.store(false, Ordering::SeqCst);
            self.changed.notify_all();
            while state.owner.is_some() {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn pause(&self, seat: &Seat) {
        seat.active.store(false, Ordering::SeqCst);
        if self.exclusive.load(Ordering::SeqCst) {
            drop(lock(&self.state));
            self.changed.notify_all();
        }
    }

    /// Makes `seat` the only active one. True if it was not already.
    fn begin(&self, seat: &Seat) -> bool {
        if self.vcpus() == 1 {
            return false;
        }
        let mut state = lock(&self.state);
        if state.owner == Some(seat.id) {
            return false;
        }
        let active = seat.active.swap(false, Ordering::SeqCst);
        self.changed.notify_all();
        while state.owner.is_some() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.owner = Some(seat.id);
        self.exclusive.store(true, Ordering::SeqCst);
        loop {
            let mut waiting = false;
            for other in state.seats.iter().filter(|s| s.id != seat.id) {
                if other.active.load(Ordering::SeqCst) {
                    other.kick();
                    waiting = true;
                }
            }
            if !waiting {
                break;
            }
            state = self
                .changed
                .wait_timeout(state, AGAIN)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        seat.active.store(active, Ordering::SeqCst);
        true
    }

    fn end(&self) {
        let mut state = lock(&self.state);
        state.owner = None;
        self.exclusive.store(false, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    fn tell_others(&self, seat: &Seat, mail: &Mail) {
        if self.vcpus() == 1 {
            return;
        }
        let state = lock(&self.state);
        for other in state.seats.iter().filter(|s| s.id != seat.id) {
            other.send(mail.clone());
            other.kick();
        }
    }

    // ---- code ----

    /// The cluster's tables by frame, good as long as it is.
    pub(crate) fn frames(&self) -> Frames {
        Frames {
            count: self.writers.len() as u64,
            writers: self.writers.as_ptr().cast(),
            code: self.bits.as_ptr().cast(),
        }
    }

    /// Whether the frame of `spa` holds decoded code.
    #[inline]
    pub(crate) fn holds(&self, spa: Spa) -> bool {
        let pfn = spa.pfn();
        self.bits
            .get((pfn / 64) as usize)
            .is_some_and(|w| w.load(Ordering::SeqCst) >> (pfn % 64) & 1 != 0)
    }

    fn set(&self, pfn: u64, on: bool) {
        if let Some(w) = self.bits.get((pfn / 64) as usize) {
            let bit = 1 << (pfn % 64);
            if on {
                w.fetch_or(bit, Ordering::SeqCst);
            } else {
                w.fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }

    /// Notes that `seat` decodes linear page `page` from the frame.
    pub(crate) fn add_code(&self, seat: &Seat, page: u64, pfn: u64) {
        let mut frames = lock(&self.frames);
        let list = frames.entry(pfn).or_default();
        if !list.contains(&(seat.id, page)) {
            list.push((seat.id, page));
        }
        self.set(pfn, true);
    }

    pub(crate) fn remove_code(&self, seat: &Seat, page: u64, pfn: u64) {
        let mut frames = lock(&self.frames);
        if let Some(list) = frames.get_mut(&pfn) {
            list.retain(|e| *e != (seat.id, page));
            if list.is_empty() {
                frames.remove(&pfn);
                self.set(pfn, false);
            }
        }
    }

    /// Takes the frame's code out of the books: the linear pages that `seat` itself decoded it at. The
    /// other vCPUs are told.
    pub(crate) fn take_code(&self, seat: &Seat, pfn: u64) -> Vec<u64> {
        let Some(list) = ({
            let mut frames = lock(&self.frames);
            let list = frames.remove(&pfn);
            self.set(pfn, false);
            list
        }) else {
            return Vec::new();
        };
        if list.iter().any(|(id, _)| *id != seat.id) {
            let state = lock(&self.state);
            for (id, page) in &list {
                let Some(other) = state.seats.iter().find(|s| s.id == *id && s.id != seat.id)
                else {
                    continue;
                };
                other.send(Mail::Code { page: *page, pfn });
                other.kick();
            }
        }
        list.into_iter()
            .filter_map(|(id, page)| (id == seat.id).then_some(page))
            .collect()
    }

    /// Notes that `seat` is about to have a write tag of the frame.
    #[inline]
    pub(crate) fn note_writer(&self, seat: &Seat, spa: Spa) {
        let Some(w) = self.writers.get(spa.pfn() as usize) else {
            return;
        };
        let me = seat.writer();
        match w.load(Ordering::Acquire) {
            // What is noted already is seen by whoever sets a code bit: he takes it away in an exclusive section only.
            SEVERAL => return,
            known if known == me => return,
            0 => {
                let lost = w.compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst);
                if lost.is_err_and(|now| now != me) {
                    w.store(SEVERAL, Ordering::SeqCst);
                }
            }
            _ => w.store(SEVERAL, Ordering::SeqCst),
        }
        // Before the caller looks at the code bits (invariant 3).
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Whether a vCPU other than `seat` may have a write tag of the frame.
    pub(crate) fn written_by_others(&self, seat: &Seat, spa: Spa) -> bool {
        let w = self
            .writers
            .get(spa.pfn() as usize)
            .map_or(0, |w| w.load(Ordering::SeqCst));
        self.vcpus() > 1 && w != 0 && w != seat.id + 1
    }

    /// No vCPU has a write tag of the frame any more.
    pub(crate) fn no_writers(&self, spa: Spa) {
        if let Some(w) = self.writers.get(spa.pfn() as usize) {
            w.store(0, Ordering::SeqCst);
        }
    }
}

/// Keeps the books locked while the host process is cloned, so that the clone finds them whole.
pub struct Frozen<'a> {
    _state: MutexGuard<'a, State>,
    _frames: MutexGuard<'a, HashMap<u64, Vec<(u16, u64)>>>,
}

impl Vcpu {
    /// Gives the cluster the address of `exit_request`. The vCPU is boxed by now.
    pub(crate) fn sit_down(&self) {
        let request = std::ptr::from_ref(&self.state.exit_request).cast_mut();
        self.seat.request.store(request, Ordering::Release);
    }

    /// From here on this vCPU may touch guest memory. Waits while another one is exclusive.
    pub fn resume_guest(&mut self) {
        self.cluster.resume(&self.seat);
        self.read_mail();
    }

    /// The opposite: this vCPU does not touch guest memory until it resumes.
    pub fn pause_guest(&self) {
        self.cluster.pause(&self.seat);
    }

    /// In turns: the vCPU is about to wait for something, so it is another's turn.
    pub fn give_turn(&self) {
        if self.cluster.in_turns() {
            self.cluster.give_turn(&self.seat, false);
        }
    }

    /// In turns: the vCPU has waited long enough and joins the queue, which others may rely on.
    pub fn join_queue(&self) {
        if self.cluster.in_turns() {
            let mut state = lock(&self.cluster.state);
            self.cluster.enqueue(&mut state, &self.seat);
            drop(state);
            self.cluster.changed.notify_all();
        }
    }

    /// In turns: another vCPU's turn, and then this one's again. The budget is full afterwards; under a model the turn is one of
    /// [`crate::model::TURN`] instructions.
    pub fn next_turn(&mut self) {
        self.drain();
        if self.cluster.in_turns() {
            self.pause_guest();
            self.cluster.give_turn(&self.seat, true);
            self.resume_guest();
            self.state.budget = TURN;
        }
        if self.model.is_some() {
            self.state.stop_at = self.state.clock() + crate::model::TURN;
        }
    }

    /// In turns: of those who wait, the one with the least key is next, and of equals who came first. All keys are 0
    /// at first.
    pub fn set_turn_key(&self, key: u64) {
        self.seat.key.store(key, Ordering::SeqCst);
    }

    /// The key, for others to lower while this vCPU waits and they have their turn.
    #[must_use]
    pub fn turn_key(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.seat.key)
    }

    /// In turns: the least key of those who wait for their turn, but not only to look at something.
    #[must_use]
    pub fn next_key(&self) -> Option<u64> {
        let state = lock(&self.cluster.state);
        let who = state.queue.iter();
        who.filter(|s| !s.looks.load(Ordering::SeqCst))
            .map(|s| s.key.load(Ordering::SeqCst))
            .min()
    }

    /// In turns: gives the turn up and waits for the next one, which `key` decides on. With `looks` that is only to look
    /// at something that others may have changed. The vCPU is not active.
    pub fn wait_turn(&self, key: u64, looks: bool) {
        self.set_turn_key(key);
        self.seat.looks.store(looks, Ordering::SeqCst);
        self.cluster.give_turn(&self.seat, true);
        self.cluster.take_turn(&self.seat);
        self.seat.looks.store(false, Ordering::SeqCst);
    }

    /// In turns: waits for this vCPU's turn. It is not active.
    pub fn take_turn(&self) {
        if self.cluster.in_turns() {
            self.cluster.take_turn(&self.seat);
        }
    }

    /// Lets another vCPU have its exclusive section, if one waits for it, and reads the mail.
    pub fn checkpoint(&mut self) {
        if self.cluster.exclusive.load(Ordering::SeqCst) {
            self.cluster.resume(&self.seat);
        }
        self.read_mail();
    }

    /// Runs `f` while no other vCPU is active. What changed elsewhere while it waited for that has been
    /// taken in before `f` runs.
    pub fn exclusively<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let mine = self.begin_exclusive();
        let result = f(self);
        if mine {
            self.end_exclusive();
        }
        result
    }

    /// Begins an exclusive section; false if there is nothing to end.
    #[must_use]
    pub fn begin_exclusive(&mut self) -> bool {
        let mine = self.cluster.begin(&self.seat);
        if mine {
            self.read_mail();
        }
        mine
    }

    /// Ends an exclusive section that [`Vcpu::begin_exclusive`] began.
    pub fn end_exclusive(&mut self) {
        self.cluster.end();
    }

    /// Whether something waits to be read.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        self.seat.has_mail.load(Ordering::Relaxed)
    }

    fn read_mail(&mut self) {
        if !self.seat.has_mail.load(Ordering::SeqCst) {
            return;
        }
        self.seat.has_mail.store(false, Ordering::SeqCst);
        // The view is everybody's: whoever wrote has closed it.
        let letters = std::mem::take(&mut *lock(&self.seat.mail));
        for letter in letters {
            match letter {
                Mail::Range { start, end, code } => self.forget_range(start, end, code),
                Mail::Drop { start, end } => self.drop_code_range(start, end),
                Mail::Flush => {
                    self.forget_mappings();
                    self.model_flush(false);
                }
                Mail::Nested => self.forget_nested(),
                Mail::Code { page, pfn } => self.drop_decoded(page, pfn),
            }
        }
    }

    fn forget_range(&mut self, start: Va, end: Va, code: bool) {
        let mut at = start.page();
        while at < end {
            self.tlb.drop_va(at);
            self.model_drop_page(at.0);
            at = at.plus(PAGE_SIZE);
        }
        self.paging.walk.flush();
        self.paging.pages.flush();
        if code {
            self.drop_code_range(start.page(), end);
        }
    }

    /// INVLPG of every page of `[start, end)`, on every vCPU; decoded code there goes too if `code`.
    pub fn shoot_down(&mut self, start: Va, end: Va, code: bool) {
        self.mem.close_view(start.page(), end);
        self.renew(start, end, code);
    }

    /// As [`Vcpu::shoot_down`], where entries have only gained rights: what a page's bytes are accessed by stays good, be it in
    /// use on other vCPUs at this moment.
    pub fn renew(&mut self, start: Va, end: Va, code: bool) {
        self.forget_range(start, end, code);
        let mail = Mail::Range { start, end, code };
        self.cluster.tell_others(&self.seat, &mail);
    }

    /// Drops code decoded in `[start, end)`, on every vCPU.
    pub fn drop_code_everywhere(&mut self, start: Va, end: Va) {
        self.drop_code_range(start, end);
        let mail = Mail::Drop { start, end };
        self.cluster.tell_others(&self.seat, &mail);
    }

    /// From now on the pages that guest and kernel write are recorded; the fast TLB lets nothing pass
    /// unseen.
    pub fn record_writes(&mut self) {
        self.writes = Some(Vec::new());
        self.mem.close_view_writes();
        self.forget_mappings();
        if let Some(m) = &self.model {
            m.distrust_filters();
        }
    }

    /// Ends the recording: addresses of the pages that were written, each once.
    pub fn recorded_writes(&mut self) -> Vec<u64> {
        let mut pages = self.writes.take().unwrap_or_default();
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// Replaces the word at `va` by `new` if it is `old`, atomically against all vCPUs. `va` is a multiple
    /// of 4.
    ///
    /// # Errors
    /// The page can't be written.
    pub fn compare_exchange_u32(&mut self, va: u64, old: u32, new: u32) -> Result<bool, Stop> {
        if let Some(host) = self.host_for_write(va, 4)? {
            // SAFETY: four aligned bytes of writable guest memory, alive as long as the controller; all
            // accesses to them that race with this are atomic or the guest's own.
            let word = unsafe { AtomicU32::from_ptr(host.as_ptr().cast()) };
            let done = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
            return Ok(done.is_ok());
        }
        let mut now = [0; 4];
        self.read(va, &mut now)?;
        if u32::from_le_bytes(now) != old {
            return Ok(false);
        }
        self.write(va, &new.to_le_bytes())?;
        Ok(true)
    }

    /// Forgets all guest mappings, on every vCPU.
    pub fn flush_all(&mut self) {
        self.flush_tlb();
        self.cluster.tell_others(&self.seat, &Mail::Flush);
    }

    /// Forgets all guest mappings, on every vCPU, of which only those of `[start, end)` have changed.
    pub fn flush_range(&mut self, start: Va, end: Va) {
        self.mem.close_view(start.page(), end);
        self.forget_mappings();
        self.model_flush(false);
        self.cluster.tell_others(&self.seat, &Mail::Flush);
    }

    /// Nested tables or the RMP have changed: the other vCPUs forget what they know of them.
    /// Frames of the view are closed by [`MemCtl::close_frames`](sevlab_memctl::MemCtl::close_frames).
    pub fn flush_nested_elsewhere(&self) {
        self.cluster.tell_others(&self.seat, &Mail::Nested);
    }

    /// Leaves the cluster: nothing that this vCPU decoded or mapped counts any more.
    pub fn retire(&mut self) {
        self.cluster.leave_for_good(&self.seat);
        self.leave_core();
        self.mem.detach_tlb(&self.tlb);
    }

    /// In a clone of the host process: the other vCPUs do not exist here, and nothing has been counted yet.
    pub fn forked(&mut self) {
        self.mem.keep_only_tlb(&self.tlb);
        self.interp.forked();
        self.model_forked();
        self.counters = crate::vcpu::Counters::default();
        let others: Vec<Arc<Seat>> = {
            let state = lock(&self.cluster.state);
            let all = state.seats.iter();
            all.filter(|s| s.id != self.seat.id).cloned().collect()
        };
        for seat in others {
            self.cluster.leave_for_good(&seat);
        }
    }

    /// The cluster this vCPU belongs to.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }
}

impl Cluster {
    /// Locks all that a clone of the host process must find whole.
    pub fn freeze(&self) -> Frozen<'_> {
        Frozen {
            _state: lock(&self.state),
            _frames: lock(&self.frames),
        }
    }
}
