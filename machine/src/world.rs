#![allow(unsafe_code)] // the vCPU is lent between the coroutine and the hypervisor
//! The loop of world switches of one vCPU.
//!
//! The guest half runs in a coroutine on a stack of its own. VMRUN is [`svm::enter`], a resume of the
//! coroutine until it yields an exit, and [`svm::leave`]; then the hypervisor half answers. The vCPU is
//! the one thing both halves hold, and never at the same time: it goes along with the control flow.
//! Between VMRUN and #VMEXIT the vCPU's seat is active ([`sevlab_cpu::smp`]).

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use sevlab_arch::Asid;
use sevlab_arch::exit::ExitCode;
use sevlab_cpu::svm::{self, VmExit};
use sevlab_cpu::{SevMode, Vcpu};

use crate::error::Error;
use crate::fence::{Fence, GuestExit, Regions};
use crate::hv::Hypervisor;
use crate::layout::Port;

/// The guest half's stack: the guest kernel, the engines and their helpers run on it.
const STACK: usize = 16 << 20;

/// What the guest half of a vCPU is made with.
pub(crate) struct Half {
    pub(crate) mode: SevMode,
    pub(crate) asid: Asid,
    pub(crate) port: Port,
    pub(crate) regions: Arc<Mutex<Regions>>,
}

/// Runs a vCPU: `guest` is what the guest half does, from its first instruction to its last, `answer` what
/// the hypervisor half does at an exit.
pub(crate) fn world<R: 'static>(
    half: Half,
    vcpu: &mut Vcpu,
    hv: &mut Hypervisor,
    guest: impl FnOnce(&mut Vcpu, &mut Fence<'_>) -> R + 'static,
    answer: &mut dyn FnMut(&mut Hypervisor, &mut Vcpu) -> Result<(), Error>,
) -> Result<R, Error> {
    let vmcb = hv.vmcb();
    let mut vcpu = NonNull::from(vcpu);
    let stack = DefaultStack::new(STACK).map_err(|source| Error::Host {
        what: "stack of the guest half",
        source,
    })?;
    let mut borrowed = vcpu;
    // Boxed: a coroutine has little room for what it starts with.
    let start = Box::new((guest, half));
    let mut guest = Coroutine::with_stack(stack, move |yielder, ()| -> Box<R> {
        let (guest, half) = *start;
        // SAFETY: the caller's vCPU outlives the coroutine. This half uses the reference only between a
        // resume and the next yield (which lends it on, see `GuestExit`), the other half only
        // outside of that.
        let vcpu = unsafe { borrowed.as_mut() };
        let mut fence = Fence::new(yielder, half.mode, half.asid, half.port, half.regions);
        Box::new(guest(vcpu, &mut fence))
    });
    loop {
        // SAFETY: the coroutine is suspended (or has not begun), and `vcpu` is the pointer that it
        // lent last.
        let v = unsafe { vcpu.as_mut() };
        hv.resumes(v);
        v.resume_guest();
        hv.resumed(v);
        if let Err(e) = svm::enter(v, vmcb) {
            v.pause_guest();
            return Err(e.into());
        }
        hv.entered()?;
        let result = guest.resume(());
        match result {
            CoroutineResult::Yield(GuestExit { vcpu: lent, exit }) => {
                vcpu = lent;
                // SAFETY: as above: the coroutine is suspended in the yield that lent it.
                let v = unsafe { vcpu.as_mut() };
                let left = svm::leave(v, vmcb, &exit);
                v.pause_guest();
                left?;
                hv.charge_exit(v, ExitCode(exit.code));
                answer(hv, v)?;
            }
            CoroutineResult::Return(result) => {
                // The guest is done for good: it halts.
                let halt = VmExit {
                    code: ExitCode::HLT.0,
                    ..VmExit::default()
                };
                // SAFETY: the coroutine is over.
                let v = unsafe { vcpu.as_mut() };
                let left = svm::leave(v, vmcb, &halt);
                v.pause_guest();
                left?;
                hv.count(ExitCode::HLT);
                return Ok(*result);
            }
        }
    }
}
