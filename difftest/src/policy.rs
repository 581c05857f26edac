//! What can be asked of each row of the instruction table: compared as it is, compared in its structure, or not run.

use crate::host::{amd, host};
use crate::outcome::End;
use iced_x86::{Code, CpuidFeature as F, FlowControl, Instruction, Mnemonic as M, OpKind};
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
    let foreign = "AMD's: the host lacks it, or its hypervisor decides";
    let tables = "needs descriptor tables, which a process guest has none of";
    if matches!(r.op, Op::JmpFar | Op::CallFar | Op::RetFar) {
        return Guest(
            Expect::Alone,
            "natively, the host's descriptor tables decide",
        );
    }
    let native = match r.op {
        Op::Extrq | Op::Insertq | Op::Movnts => Some(host().sse4a),
        Op::Clzero => Some(host().clzero),
        Op::Monitorx | Op::Mwaitx => Some(host().monitorx),
        // Natively it reads what it is told to, and the guest's hypervisor intercepts it for some registers only.
        Op::Rdpru => Some(false),
        _ => None,
    };
    match native {
        Some(true) => return Compare,
        Some(false) => return Guest(Expect::Alone, foreign),
        None => {}
    }
    if amd()
        && matches!(
            code,
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        )
    {
        return Guest(Expect::Alone, "a prefetch of a register: #UD on AMD's");
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

/// Whether this instruction, of a row that is run natively, must not be all the same. `bytes` begin with it.
#[must_use]
pub fn forbidden(i: &Instruction, bytes: &[u8]) -> bool {
    // The kernel's 32-bit interface.
    if i.mnemonic() == M::Int && i.op_kind(0) == OpKind::Immediate8 && i.immediate8() == 0x80 {
        return true;
    }
    if !amd() {
        return false;
    }
    // What AMD's processors make of prefixes that Intel's, and the guest, ignore.
    let prefixes = prefixes(bytes);
    let has = |b: u8| prefixes.contains(&b);
    match i.mnemonic() {
        // The condition becomes the prefix's.
        M::Loope | M::Loopne => has(0xf2) || has(0xf3) || has(0x66),
        // XCHG with R8, by REX.B.
        M::Pause => bytes[i.len() - 2] & 0xf1 == 0x41,
        // The target is cut to 16 bits, and a displacement has 16.
        _ => has(0x66) && near_branch(i),
    }
}

/// The legacy prefixes of an instruction, and REX prefixes that others follow.
fn prefixes(bytes: &[u8]) -> &[u8] {
    let legacy = |b: &u8| {
        matches!(
            b,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
        )
    };
    let any = |b: &u8| legacy(b) || matches!(b, 0x40..=0x4f);
    let n = bytes.iter().take_while(|b| any(b)).count();
    let last = bytes[..n].iter().rposition(legacy);
    &bytes[..last.map_or(0, |at| at + 1)]
}

fn near_branch(i: &Instruction) -> bool {
    use FlowControl::{
        Call, ConditionalBranch, IndirectBranch, IndirectCall, Return, UnconditionalBranch,
    };
    let far = matches!(
        row(i.code()).op,
        Op::JmpFar | Op::CallFar | Op::RetFar | Op::Iret
    );
    let branches = matches!(
        i.flow_control(),
        Call | ConditionalBranch | IndirectBranch | IndirectCall | Return | UnconditionalBranch
    );
    branches && !far
}

/// Whether the row can only be the last instruction of a case.
#[must_use]
pub fn ends_case(p: Policy) -> bool {
    p != Policy::Compare
}
