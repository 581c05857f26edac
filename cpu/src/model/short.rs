#![allow(unsafe_code)] // the host's own words
//! [`Vcpu::touch_known`] and [`Vcpu::fetch_known`] once more, in the host's own words, for translated code: what its filter does not pass is
//! mostly served by L2, in a third of the instructions here. [`ShortWay`] has the caches' part.
//!
//! Either all of an access is done here, as there, or nothing. It has to be changed with them.

use core::arch::naked_asm;
use core::mem::offset_of;
use core::ptr::NonNull;

use sevlab_arch::Va;
use sevlab_memctl::ShortWay;

use super::At;
use super::known::{FIRST, Page};
use crate::mmu::Access;
use crate::smp::Frames;
use crate::state::CpuState;
use crate::vcpu::Vcpu;

/// What [`touch_data`] and [`touch_fetch`] go by: of one vCPU, good as long as its core is attached.
#[repr(C)]
pub struct Short {
    /// The caches' part finds it where all of this is.
    way: ShortWay,
    data: *const Page,
    code: *const Page,
    /// The RMP's.
    epoch: *const u64,
    frames: Frames,
    /// The vCPU, among those that may have write tags.
    writer: u64,
    /// What is waited for the cache below the first level, and where it is counted.
    cycles: u64,
    stalls: *mut u64,
    waited: *mut u64,
}

// SAFETY: what it points to is the vCPU's, the cluster's and the controller's, which go from thread to thread with the vCPU; it is used by the
// thread that runs this.
unsafe impl Send for Short {}

/// The access of known data (`FETCH` 0) or code (1).
macro_rules! touch {
    ($(#[$doc:meta])* $name:ident, $pages:ident, $caches:ident, $fetch:literal) => {
        $(#[$doc])*
        ///
        /// Registers, in: RDI is the [`Short`], R10 the address, R11 the stamp, R15 the state. Out: RAX is the host address, or 0 if nothing was
        /// done; RDX is not 0 if [`Vcpu::touch_due`] has to finish it. R10, R11, R15 and vector registers but XMM0 to XMM3 are left as
        /// they are.
        ///
        /// # Safety
        /// For translated code, and as it says of registers: `Short` is from [`Vcpu::short`], asked for when this run of the vCPU began.
        #[unsafe(naked)]
        pub unsafe extern "sysv64" fn $name() {
            naked_asm!(
                "mov rax, r10", "shr rax, 47", "jnz 9f",
                // The page.
                "mov rax, r10", "shr rax, 12", "and eax, {count} - 1", "shl eax, 5", "add rax, [rdi + {known}]",
                "xor edx, edx", "cmp byte ptr [r15 + {cpl}], 3", "sete dl",
                "mov rcx, r10", "and rcx, -4096", "or rcx, rdx", "cmp rcx, [rax + {tag}]", "jne 9f",
                "mov rcx, [rdi + {epoch}]", "mov rcx, [rcx]", "cmp rcx, [rax + {asked}]", "jne 9f",
                "mov rdx, [rax + {spa}]", "mov ecx, [rax + {who}]",
                ".if {fetch} == 0",
                "mov r8d, edx", "and r8d, 1", "cmp esi, r8d", "ja 9f",
                "lea esi, [rsi + r8 * 2]",
                ".endif",
                "and rdx, -4096", "mov eax, r10d", "and eax, 4095", "or rdx, rax",
                ".if {fetch} == 0",
                // Its frame has no code, and is known to be written from here, if it may be.
                "mov r9, rdx", "shr r9, 12", "cmp r9, [rdi + {frames}]", "jae 9f",
                "test r8d, r8d", "jz 2f",
                "mov rax, [rdi + {writers}]", "movzx eax, word ptr [rax + r9 * 2]", "cmp rax, [rdi + {writer}]", "jne 9f",
                "2:",
                "mov r8, r9", "shr r8, 6", "mov rax, [rdi + {bits}]", "mov rax, [rax + r8 * 8]", "bt rax, r9", "jc 9f",
                ".endif",
                "call [rdi + {caches}]",
                "test rax, rax", "jz 8f",
                "test rdx, rdx", "jnz 8f",
                "mov rcx, [rdi + {cycles}]",
                "mov r8, [rdi + {stalls}]", "add [r8], rcx",
                "mov r8, [rdi + {waited}]", "add [r8], rcx",
                ".if {fetch}",
                "mov rcx, r10", "shr rcx, 6", "mov [r15 + {fetch_line}], rcx",
                ".endif",
                "8: ret",
                "9: xor eax, eax", "xor edx, edx", "ret",
                fetch = const $fetch,
                caches = const offset_of!(Short, way.$caches),
                known = const offset_of!(Short, $pages),
                count = const FIRST,
                tag = const offset_of!(Page, tag),
                spa = const offset_of!(Page, spa),
                asked = const offset_of!(Page, epoch),
                who = const offset_of!(Page, who),
                cpl = const offset_of!(CpuState, cpl),
                fetch_line = const offset_of!(CpuState, fetch_line),
                epoch = const offset_of!(Short, epoch),
                frames = const offset_of!(Short, frames.count),
                writers = const offset_of!(Short, frames.writers),
                bits = const offset_of!(Short, frames.code),
                writer = const offset_of!(Short, writer),
                cycles = const offset_of!(Short, cycles),
                stalls = const offset_of!(Short, stalls),
                waited = const offset_of!(Short, waited),
            )
        }
    };
}

touch!(
    /// A load, or, ESI being 1, a store, of bytes in one line.
    touch_data, data, data_way, 0
);
touch!(
    /// The fetch of a line; ESI is 0.
    touch_fetch, code, fetch_way, 1
);

/// What came of an access.
#[repr(C)]
struct Touched {
    host: Option<NonNull<u8>>,
    due: u64,
}

/// [`touch_data`] for who is not translated code.
///
/// # Safety
/// As for [`touch_data`]; the state is the vCPU's.
#[unsafe(naked)]
unsafe extern "sysv64" fn touch_from(
    short: *const Short,
    store: u64,
    va: u64,
    stamp: u64,
    state: *mut CpuState,
) -> Touched {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov r10, rdx", "mov r11, rcx", "mov r15, r8",
        "call {touch_data}",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        touch_data = sym touch_data,
    )
}

impl Vcpu {
    /// [`touch_data`], finished. `None`: nothing was done.
    #[inline]
    pub fn touch_short(&mut self, va: u64, access: Access, at: At) -> Option<NonNull<u8>> {
        let short = self.short();
        if short.is_null() {
            return None;
        }
        let (store, stamp) = (u64::from(access == Access::Write), self.stamp(at));
        // SAFETY: it is this vCPU's, asked for just now, and this thread holds the lock of the controller, in which nobody is.
        let touched = unsafe { touch_from(short, store, va, stamp, &raw mut self.state) };
        match touched.due {
            0 => touched.host,
            _ => self.touch_due(va, at),
        }
    }

    /// [`Vcpu::touch_known`] of a line that the filter may have.
    pub fn touch_line(&mut self, va: u64, access: Access, at: At) -> Option<NonNull<u8>> {
        if !self.short().is_null()
            && let Some(m) = &self.model
        {
            let (stamp, store) = (self.stamp(at), access == Access::Write);
            if let Some(host) = m.lines.hit(Va(va), 1, store, stamp) {
                return Some(host);
            }
        }
        self.touch_known(va, access, at)
    }

    /// Whether short ways through the caches may be taken, here and in the controller; they may from the start.
    pub fn use_short_ways(&mut self, on: bool) {
        if core::mem::replace(&mut self.short_ways, on) != on {
            self.mem.use_short_ways(on);
        }
    }

    /// Makes the short way, if the core is one that it is for.
    pub(super) fn make_short(&mut self) {
        let Some(m) = self.model.as_deref_mut().filter(|m| m.overlap.is_none()) else {
            return;
        };
        let (cycles, stalls) = m.second();
        let stalls = &raw mut *stalls;
        m.short = self.mem.short_way(m.core).map(|way| {
            Box::new(Short {
                way,
                data: m.known_data.pages(),
                code: m.known_code.pages(),
                epoch: self.mem.rmp().epoch_word(),
                frames: self.cluster.frames(),
                writer: self.seat.writer().into(),
                cycles,
                stalls,
                waited: &raw mut m.waited,
            })
        });
    }

    /// What [`touch_data`] and [`touch_fetch`] need, or null: nothing may take the short way. Good for this thread until the vCPU does anything but
    /// run translated code.
    #[must_use]
    pub fn short(&self) -> *const Short {
        let none = core::ptr::null();
        let Some(m) = &self.model else { return none };
        let seen = self.trace.is_some() || self.writes.is_some();
        if !self.short_ways || seen || !self.mem.is_held() {
            return none;
        }
        m.short.as_deref().map_or(none, core::ptr::from_ref)
    }
}
