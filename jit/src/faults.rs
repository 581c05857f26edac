//! Faults of translated code that goes to guest memory without a probe.
//!
//! The problem: where guest memory is in the view ([`sevlab_memctl::MemCtl::view`]), an access is one host instruction. One that
//! the guest's page tables do not allow, or whose page is not in the view yet, is a SIGSEGV of the host; one beyond the view
//! runs into a trap, which is a SIGILL. The guest's registers are in the host's then, wherever the compiler has put them.
//!
//! The approach: translated code keeps the state's memory so far current that all registers can be worked out from it: each
//! access belongs to a [`Site`], which says how. The signal handler only sends the thread on to a stub, which runs
//! [`settle`] as any helper is run, not as a handler. If that has put the page into the view, the host's instruction
//! runs again. If not, the registers are worked out, the region is left, and the interpreter runs the guest's
//! instruction, with its fault if it has one.
//!
//! Invariants:
//! 1. Only a thread between [`Inside::new`] and its drop has its faults taken, and only those in the code buffer it named.
//! 2. A host instruction that faults lies behind all stores that its site reads, and before those of the next.
#![allow(unsafe_code)] // a signal handler

use crate::layout::{self, exit, word};
use sevlab_arch::Va;
use sevlab_cpu::mmu::Access;
use sevlab_cpu::{CpuState, Vcpu};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

/// How to work a value out from state memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is known.
    Constant(u64),
    /// The register's slot plus a distance, of which the low `bits` bits count.
    Slot {
        /// The general register.
        slot: u8,
        /// The distance.
        plus: i64,
        /// 8, 16, 32 or 64.
        bits: u8,
    },
    /// It is in its own place.
    Stored,
}

/// The instructions retired when an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// So many since the region was entered.
    Since(u64),
    /// As many as the state's word says, and so many.
    Word(i64),
}

/// What the guest's registers are at the accesses of one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The instruction.
    pub rip: u64,
    /// Instructions retired before it.
    pub retired: Retired,
    /// General registers whose slots are not current.
    pub gprs: Vec<(u8, Source)>,
    /// The flags' record, if that in the state is not current: its kind, and its three operands.
    pub flags: Option<(u64, [Source; 3])>,
}

/// The sites of one region.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    /// Where code that belongs to another site begins, as offsets in the region's code, and that site.
    pub starts: Vec<(u32, u32)>,
    /// The sites.
    pub sites: Vec<Site>,
}

impl Sites {
    fn at(&self, offset: u32) -> Option<&Site> {
        let n = self.starts.partition_point(|&(start, _)| start <= offset);
        let (_, site) = self.starts.get(n.checked_sub(1)?)?;
        self.sites.get(*site as usize)
    }
}

/// A region that may fault.
pub(crate) struct Faulting {
    pub end: usize,
    pub entry: u64,
    pub sites: Sites,
}

/// A block that runs as it is.
pub(crate) struct Copied {
    /// Its guest address.
    pub rip: u64,
    /// As [`crate::direct::Direct::sites`].
    pub sites: Box<[(u32, u32)]>,
}

/// All code that may fault, by where it begins: regions, and the blocks that run as they are ([`crate::direct`]) with their sites.
#[derive(Default)]
pub(crate) struct Table {
    pub regions: BTreeMap<usize, Faulting>,
    pub direct: BTreeMap<usize, Copied>,
}

impl Table {
    fn find(&self, pc: usize) -> Option<(u64, &Site)> {
        let (start, region) = self.regions.range(..=pc).next_back()?;
        let site = region.sites.at((pc - start) as u32)?;
        (pc < region.end).then_some((region.entry, site))
    }

    /// The address of a block that runs as it is, and its way out, if that is what faulted.
    fn way_out(&self, pc: usize) -> Option<(u64, usize)> {
        let (start, Copied { rip, sites }) = self.direct.range(..=pc).next_back()?;
        let offset = (pc - start) as u32;
        let n = sites.partition_point(|(begins, _)| *begins <= offset);
        let (_, out) = sites.get(n.checked_sub(1)?)?;
        (*out != u32::MAX).then(|| (*rip, start + *out as usize))
    }
}

/// What the handler tells [`settle`] of the access.
mod how {
    pub(super) const READ: u64 = 0;
    pub(super) const WRITE: u64 = 1;
    /// The address lies outside of the view.
    pub(super) const OUTSIDE: u64 = 2;
}

std::arch::global_asm!(
    // Comes from the handler: the address of the faulting instruction is on the stack, everything else as it was there.
    ".globl sevlab_stub_fault",
    ".p2align 4",
    "sevlab_stub_fault:",
    "pushfq",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
    "push rbx",
    "cld",
    "lea rsi, [rsp+88]",
    "mov rdi, r15",
    "mov rbx, rsp",
    "sub rsp, 512",
    "and rsp, -16",
    crate::runtime::store_vectors!(),
    "cmp qword ptr [r15 + {avx}], 0",
    "je 3f",
    crate::runtime::each_vector!("vextractf128 [rsp + 256 + 16 * ", "], ymm", ", 1"),
    "3:",
    "call {settle}",
    "test rax, rax",
    "jnz 2f",
    crate::runtime::load_vectors!(),
    "cmp qword ptr [r15 + {avx}], 0",
    "je 4f",
    crate::runtime::each_vector!("vinsertf128 ymm", ", ymm", ", [rsp + 256 + 16 * ", "], 1"),
    "4:",
    "mov rsp, rbx",
    "pop rbx",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "popfq",
    "ret",
    // Leaves the region as its own epilogue would: all that the caller wants preserved is the frame pointer.
    "2:",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    settle = sym settle,
    avx = const layout::AVX,
);

unsafe extern "C" {
    fn sevlab_stub_fault();
}

thread_local! {
    /// The code buffer that this thread runs in.
    static CODE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// The access that was settled last, and how often it came back at once.
    static LAST: Cell<(usize, u64, u32)> = const { Cell::new((0, 0, 0)) };
}

/// As long as this lives, faults of this thread in that code are settled.
pub(crate) struct Inside((usize, usize));

impl Inside {
    pub(crate) fn new(code: Range<usize>) -> Self {
        Self(CODE.replace((code.start, code.end)))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        CODE.set(self.0);
    }
}

/// Of so many faults of one instruction at one address in a row, without another between them, nothing is to be expected.
const MOST_RETRIES: u32 = 16;

/// Brings the page into the view (0), or works the guest's registers out: the region is left with what this returns. A block that
/// runs as it is leaves by its own way: `back`, where the stub returns to, becomes that.
extern "sysv64" fn settle(state: *mut CpuState, back: *mut usize) -> i64 {
    // SAFETY: called by the stub only, with the pinned register, as any helper, and with a word on the stub's stack.
    let (v, pc) = unsafe { (&mut *state.cast::<Vcpu>(), *back) };
    let engine = &v.state.engine;
    let (host, why) = (
        engine[word(layout::FAULT_AT)],
        engine[word(layout::FAULT_HOW)],
    );
    let (base, table) = (engine[word(layout::VIEW)], engine[word(layout::SITES)]);
    // Beyond the view nothing is in it either, nor where there is none.
    let (mut unseen, mut own_code) = (why == how::OUTSIDE || base == 0, false);
    if !unseen {
        let va = host.wrapping_sub(base);
        let (access, blocked) = if why == how::WRITE {
            (Access::Write, v.would_hit_code(va, 1))
        } else {
            (Access::Read, false)
        };
        own_code = blocked;
        if !blocked && let Ok(got) = v.fill(Va(va), access) {
            let there = got.is_some_and(|p| p.as_ptr() as u64 == host);
            let (last_pc, last_host, times) = LAST.get();
            let times = if (last_pc, last_host) == (pc, host) {
                times + 1
            } else {
                0
            };
            LAST.set((pc, host, times));
            if there && times < MOST_RETRIES {
                return 0;
            }
            unseen = true;
        }
    }
    // SAFETY: the engine put its own table there, and does not touch it while translated code runs.
    let table = unsafe { &*(table as *const Table) };
    if let Some((rip, out)) = table.way_out(pc) {
        // A fault of the guest's own is no reason to do without the copy: it may be the first touch of a page.
        v.state.engine[word(layout::LEFT_REGION)] = if unseen || own_code { rip } else { 0 };
        // SAFETY: as above.
        unsafe { *back = out };
        return 0;
    }
    let Some((entry, site)) = table.find(pc) else {
        // No code without sites makes such accesses.
        unreachable!("translated code at {pc:#x} faulted at {host:#x} and has no site");
    };
    restore(&mut v.state, site);
    if unseen {
        v.state.engine[word(layout::LEFT_REGION)] = entry;
        exit::UNSEEN
    } else {
        exit::INTERPRET
    }
}

/// Makes the state what it was before the site's instruction.
fn restore(s: &mut CpuState, site: &Site) {
    let gprs = s.gpr;
    let value = |source: Source, own: u64| match source {
        Source::Constant(v) => v,
        Source::Slot { slot, plus, bits } => {
            let v = gprs[usize::from(slot & 15)].wrapping_add(plus as u64);
            if bits >= 64 { v } else { v & ((1 << bits) - 1) }
        }
        Source::Stored => own,
    };
    for &(r, source) in &site.gprs {
        let r = usize::from(r & 15);
        s.gpr[r] = value(source, gprs[r]);
    }
    if let Some((op, [a, b, r])) = site.flags {
        s.cc.op = op;
        s.cc.a = value(a, s.cc.a);
        s.cc.b = value(b, s.cc.b);
        s.cc.r = value(r, s.cc.r);
    }
    s.retired = s.retired.wrapping_add(match site.retired {
        Retired::Since(n) => n,
        Retired::Word(n) => s.engine[word(layout::COUNT)].wrapping_add(n as u64),
    });
    s.rip = site.rip;
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Signals that translated code can raise, and what they did before.
static BEFORE: [(i32, OnceLock<libc::sigaction>); 3] = [
    (libc::SIGSEGV, OnceLock::new()),
    // Of a division that was copied.
    (libc::SIGFPE, OnceLock::new()),
    (libc::SIGILL, OnceLock::new()),
];

/// Installs the handlers, once. False: the host does not let us.
pub(crate) fn install() -> bool {
    static DONE: OnceLock<bool> = OnceLock::new();
    *DONE.get_or_init(|| {
        BEFORE.iter().all(|(signo, before)| {
            // SAFETY: asks what is installed, and installs a handler that is async-signal-safe, see there. Zeroes are a valid
            // `sigaction`.
            unsafe {
                let mut old: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(*signo, std::ptr::null(), &raw mut old) != 0 {
                    return false;
                }
                let _ = before.set(old);
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as Handler as usize;
                // Who was there before may leave its handler by a jump.
                action.sa_flags =
                    libc::SA_SIGINFO | libc::SA_ONSTACK | old.sa_flags & libc::SA_NODEFER;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(*signo, &raw const action, std::ptr::null_mut()) == 0
            }
        })
    })
}

/// Sends a thread whose translated code has faulted on to the stub. Reads a thread-local constant and writes to the thread's own
/// state and stack: async-signal-safe.
extern "C" fn on_fault(signo: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the host passes a valid `siginfo_t` and a `ucontext_t`, which nobody else has.
    let (code, at, registers) = unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        (
            (*info).si_code,
            (*info).si_addr() as u64,
            &mut context.uc_mcontext.gregs,
        )
    };
    let pc = registers[libc::REG_RIP as usize] as usize;
    let (start, end) = CODE.get();
    // Signals that somebody sent have codes of 0 and below.
    if code > 0 && (start..end).contains(&pc) {
        let state = registers[libc::REG_R15 as usize] as *mut CpuState;
        let written = registers[libc::REG_ERR as usize] & 2 != 0;
        let how = match signo {
            libc::SIGILL | libc::SIGFPE => how::OUTSIDE,
            _ if written => how::WRITE,
            _ => how::READ,
        };
        let sp = registers[libc::REG_RSP as usize] - 8;
        // SAFETY: translated code keeps the state of the vCPU that this thread runs in R15, and the host's stack pointer;
        // it keeps nothing below that.
        unsafe {
            (*state).engine[word(layout::FAULT_AT)] = at;
            (*state).engine[word(layout::FAULT_HOW)] = how;
            *(sp as *mut u64) = pc as u64;
        }
        registers[libc::REG_RSP as usize] = sp;
        registers[libc::REG_RIP as usize] = sevlab_stub_fault as *const () as i64;
        return;
    }
    let before = BEFORE.iter().find(|(n, _)| *n == signo);
    match before.and_then(|(_, old)| old.get()) {
        Some(old) if old.sa_sigaction > libc::SIG_IGN && old.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: somebody installed it as a handler with three arguments, and these are the host's.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(old.sa_sigaction) };
            handler(signo, info, context);
        }
        Some(old) => {
            // SAFETY: installs what was there; the instruction runs again, and the fault ends as it would have.
            unsafe { libc::sigaction(signo, old, std::ptr::null_mut()) };
        }
        None => {
            // SAFETY: installs the default action.
            unsafe { libc::signal(signo, libc::SIG_DFL) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_come_from_the_slots_as_they_were() {
        let mut v = CpuState::process();
        v.gpr[0] = 0x1_0000_0001;
        v.gpr[3] = 7;
        v.cc.b = 5;
        v.retired = 10;
        v.engine[word(layout::COUNT)] = 100;
        let slot = |slot, plus, bits| Source::Slot { slot, plus, bits };
        restore(
            &mut v,
            &Site {
                rip: 0x1234,
                retired: Retired::Word(-3),
                gprs: vec![
                    (0, slot(3, 1, 64)),
                    (3, slot(0, -2, 32)),
                    (5, Source::Constant(9)),
                ],
                flags: Some((0x302, [slot(0, 0, 8), Source::Stored, Source::Constant(4)])),
            },
        );
        assert_eq!((v.gpr[0], v.gpr[3], v.gpr[5]), (8, 0xffff_ffff, 9));
        assert_eq!((v.cc.op, v.cc.a, v.cc.b, v.cc.r), (0x302, 1, 5, 4));
        assert_eq!((v.rip, v.retired), (0x1234, 107));
    }

    #[test]
    fn a_pc_belongs_to_the_last_start_before_it() {
        let site = |rip| Site {
            rip,
            retired: Retired::Since(0),
            gprs: Vec::new(),
            flags: None,
        };
        let sites = Sites {
            starts: vec![(8, 1), (20, 0)],
            sites: vec![site(1), site(2)],
        };
        assert_eq!(sites.at(7).map(|s| s.rip), None);
        assert_eq!(sites.at(8).map(|s| s.rip), Some(2));
        assert_eq!(sites.at(19).map(|s| s.rip), Some(2));
        assert_eq!(sites.at(20).map(|s| s.rip), Some(1));
        let mut table = Table::default();
        let region = Faulting {
            end: 0x1100,
            entry: 5,
            sites,
        };
        table.regions.insert(0x1000, region);
        assert_eq!(table.find(0x1014).map(|(e, s)| (e, s.rip)), Some((5, 1)));
        assert!(table.find(0xfff).is_none() && table.find(0x1100).is_none());
    }
}
