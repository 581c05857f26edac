//! What can be asked of each row of the instruction table: compared as it is, compared in its structure, or not run.

use crate::outcome::End;
use iced_x86::{Code, CpuidFeature as F, Instruction, Mnemonic as M, OpKind};
use sevlab_cpu::Op;
use sevlab_cpu::table::{Route, Row, row};

/// How a row is tested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Everything is compared.
    Compare,
    /// The last instruction of its case; everything but its results in these registers is compared.
    Varies {
        /// The first operand is one of the results.
        first: bool,
        /// General registers that hold results, as a mask.
        gpr: u16,
        /// Why.
        why: &'static str,
    },
    /// The guest's hypervisor intercepts it. Natively it completes, having written these registers.
    Intercepted {
        /// General registers that it writes, as a mask.
        gpr: u16,
    },
    /// Not run natively: what precedes it is, and the guest must then stop like this at it.
    Guest(Expect, &'static str),
    /// Not run at all.
    Never(&'static str),
}

/// What the guest does with an instruction that is not run natively.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// #GP(0).
    Protection,
    /// #UD.
    Undefined,
    /// SYSCALL: RCX and R11 are set.
    Syscall,
    /// An intercept of this name.
    Intercept(&'static str),
    /// Whatever the guest's engines agree on: the case is not run natively at all.
    Alone,
}

impl Expect {
    /// Whether a guest ended like this.
    #[must_use]
    pub fn met(self, end: &End) -> bool {
        match self {
            Self::Protection => *end == End::PROTECTION,
            Self::Undefined => *end == End::UNDEFINED,
            Self::Syscall => *end == End::Syscall,
            Self::Intercept(name) => {
                matches!(end, End::Intercept(kind, _) if kind.starts_with(name))
            }
            Self::Alone => true,
        }
    }
}

const RAX: u16 = 1 << 0;
const RCX: u16 = 1 << 1;
const RDX: u16 = 1 << 2;
const RBX: u16 = 1 << 3;

/// The policy of a row.
#[must_use]
pub fn policy(code: Code) -> Policy {
    use Policy::{Compare, Guest, Intercepted, Never, Varies};
    let r = row(code);
    if r.route == Route::Undefined {
        return Guest(
            Expect::Undefined,
            "not part of the guest's processor: #UD in the guest",
        );
    }
    if r.route == Route::Thunk && !sevlab_host_has(&r) {
        return Never("the host lacks it");
    }
    let emulated = "the host's kernel emulates it (UMIP)";
    let foreign = "AMD's, and #UD on an Intel host";
    let tables = "needs descriptor tables, which a process guest has none of";
    if matches!(r.op, Op::JmpFar | Op::CallFar | Op::RetFar) {
        return Guest(
            Expect::Alone,
            "natively, the host's descriptor tables decide",
        );
    }
    if matches!(
        r.op,
        Op::Extrq | Op::Insertq | Op::Movnts | Op::Clzero | Op::Monitorx | Op::Mwaitx | Op::Rdpru
    ) {
        return Guest(Expect::Alone, foreign);
    }
    match code.mnemonic() {
        M::Rdrand | M::Rdseed => Varies {
            first: true,
            gpr: 0,
            why: "random: flags and width",
        },
        M::Rdpid => Varies {
            first: true,
            gpr: 0,
            why: "the host's processor number",
        },
        M::Xgetbv => Varies {
            first: false,
            gpr: RAX | RDX,
            why: "the host enables other components",
        },
        M::Cpuid => Intercepted {
            gpr: RAX | RCX | RDX | RBX,
        },
        M::Rdtsc => Intercepted { gpr: RAX | RDX },
        M::Rdtscp => Intercepted {
            gpr: RAX | RCX | RDX,
        },
        M::Syscall => Guest(Expect::Syscall, "a system call: not for the host's kernel"),
        M::Vmmcall => Guest(Expect::Intercept("Vmmcall"), foreign),
        M::Vmgexit => Guest(Expect::Intercept("Vmgexit"), foreign),
        M::Sgdt | M::Sidt | M::Sldt | M::Smsw | M::Str => Guest(Expect::Protection, emulated),
        M::Vmrun | M::Vmload | M::Vmsave | M::Stgi | M::Clgi | M::Skinit | M::Invlpga => {
            Guest(Expect::Undefined, foreign)
        }
        M::Invlpgb | M::Tlbsync => Guest(Expect::Undefined, foreign),
        M::Psmash | M::Pvalidate | M::Rmpadjust | M::Rmpupdate => {
            Guest(Expect::Protection, foreign)
        }
        M::Lss | M::Lfs | M::Lgs => Guest(Expect::Protection, tables),
        M::Xsaveopt | M::Xsaveopt64 => Never("what it leaves out is up to the processor"),
        _ => Compare,
    }
}

fn sevlab_host_has(r: &Row) -> bool {
    use std::arch::is_x86_feature_detected as has;
    r.code.cpuid_features().iter().all(|f| match f {
        F::AES => has!("aes"),
        F::PCLMULQDQ => has!("pclmulqdq"),
        F::SHA => has!("sha"),
        F::GFNI => has!("gfni"),
        F::AVX => has!("avx"),
        F::AVX2 => has!("avx2"),
        F::FMA => has!("fma"),
        F::F16C => has!("f16c"),
        F::VAES => has!("vaes"),
        F::VPCLMULQDQ => has!("vpclmulqdq"),
        F::BMI1 => has!("bmi1"),
        F::BMI2 => has!("bmi2"),
        F::ADX => has!("adx"),
        F::RDRAND => has!("rdrand"),
        F::RDSEED => has!("rdseed"),
        F::MOVBE => has!("movbe"),
        _ => true,
    })
}

/// Whether this instruction, of a row that is run natively, must not be all the same.
#[must_use]
pub fn forbidden(i: &Instruction) -> bool {
    // The kernel's 32-bit interface.
    i.mnemonic() == M::Int && i.op_kind(0) == OpKind::Immediate8 && i.immediate8() == 0x80
}

/// Whether the row can only be the last instruction of a case.
#[must_use]
pub fn ends_case(p: Policy) -> bool {
    p != Policy::Compare
}
