//! One row per instruction: what iced calls it, which family implements it, and by which route.
//!
//! [`row`] is the only place that says what the processor supports. Decoding dispatches on it, the
//! coverage report and the random-instruction tests iterate over it ([`rows`]). Widths, operands and
//! flags of a decoded instruction are [`crate::decode`]'s business, not the table's.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic};

use crate::flags::Cond;
use crate::insn::Op;

/// Who runs an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Route {
    /// Written in the builder vocabulary: both tiers run the same definition.
    Sem,
    /// Runs in the interpreter, whichever tier meets it: strings, system instructions.
    Complex,
    /// A native thunk over register state.
    Thunk,
    /// #GP(0) at CPL 3.
    Privileged,
    /// #UD: not part of the processor.
    Undefined,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// iced's name of the encoding.
    pub code: Code,
    /// Who runs it.
    pub route: Route,
    /// Its family.
    pub op: Op,
    /// The CPUID feature that brought it.
    pub feature: CpuidFeature,
}

/// The row of one encoding.
#[must_use]
pub fn row(code: Code) -> Row {
    let (op, route) = match integer(code) {
        Some(x) => x,
        None if crate::thunk::route(code).is_some() => (Op::Thunk, Route::Thunk),
        None => (Op::Ud, Route::Undefined),
    };
    Row {
        code,
        route,
        op,
        feature: code
            .cpuid_features()
            .first()
            .copied()
            .unwrap_or(CpuidFeature::INTEL8086),
    }
}

/// Every encoding that iced knows, with its row.
pub fn rows() -> impl Iterator<Item = Row> {
    Code::values().map(row)
}

/// Everything that is not a thunk: integer, control flow, strings, system.
#[allow(clippy::too_many_lines)] // a table
fn integer(code: Code) -> Option<(Op, Route)> {
    use Mnemonic as M;
    use Route::{Complex, Privileged, Sem, Undefined};
    if code.encoding() != EncodingKind::Legacy && code.encoding() != EncodingKind::VEX {
        return None;
    }
    if only_outside_long_mode(code) {
        return Some((Op::Ud, Undefined));
    }
    let sem = |op| Some((op, Sem));
    let complex = |op| Some((op, Complex));
    let privileged = Some((Op::Privileged, Privileged));
    let undefined = Some((Op::Ud, Undefined));
    match code.mnemonic() {
        // data movement
        M::Mov => match code {
            Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
                complex(Op::MovFromSeg)
            }
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
                complex(Op::MovToSeg)
            }
            Code::Mov_r64_cr
            | Code::Mov_cr_r64
            | Code::Mov_r64_dr
            | Code::Mov_dr_r64
            | Code::Mov_r32_cr
            | Code::Mov_cr_r32
            | Code::Mov_r32_dr
            | Code::Mov_dr_r32 => privileged,
            Code::Mov_r32_tr | Code::Mov_tr_r32 => undefined,
            _ => sem(Op::Mov),
        },
        M::Movnti => sem(Op::Mov),
        M::Movzx => sem(Op::Movzx),
        M::Movsx | M::Movsxd => sem(Op::Movsx),
        M::Lea => sem(Op::Lea),
        M::Xchg => sem(Op::Xchg),
        M::Push => match code {
            Code::Pushw_FS | Code::Pushq_FS | Code::Pushw_GS | Code::Pushq_GS => {
                complex(Op::PushSeg)
            }
            _ => sem(Op::Push),
        },
        M::Pop => match code {
            Code::Popw_FS | Code::Popq_FS | Code::Popw_GS | Code::Popq_GS => complex(Op::PopSeg),
            _ => sem(Op::Pop),
        },
        M::Pushf | M::Pushfq => sem(Op::Pushf),
        M::Popf | M::Popfq => complex(Op::Popf),
        M::Leave => sem(Op::Leave),
        M::Enter => sem(Op::Enter),
        M::Bswap => sem(Op::Bswap),
        M::Movbe => sem(Op::Movbe),
        M::Xlatb => sem(Op::Xlat),
        M::Cwd | M::Cdq | M::Cqo => sem(Op::Cwd),
        M::Cbw | M::Cwde | M::Cdqe => sem(Op::Cbw),
        M::Lahf => sem(Op::Lahf),
        M::Sahf => sem(Op::Sahf),
        M::Cmovo => sem(Op::Cmov(Cond::O)),
        M::Cmovno => sem(Op::Cmov(Cond::No)),
        M::Cmovb => sem(Op::Cmov(Cond::B)),
        M::Cmovae => sem(Op::Cmov(Cond::Ae)),
        M::Cmove => sem(Op::Cmov(Cond::E)),
        M::Cmovne => sem(Op::Cmov(Cond::Ne)),
        M::Cmovbe => sem(Op::Cmov(Cond::Be)),
        M::Cmova => sem(Op::Cmov(Cond::A)),
        M::Cmovs => sem(Op::Cmov(Cond::S)),
        M::Cmovns => sem(Op::Cmov(Cond::Ns)),
        M::Cmovp => sem(Op::Cmov(Cond::P)),
        M::Cmovnp => sem(Op::Cmov(Cond::Np)),
        M::Cmovl => sem(Op::Cmov(Cond::L)),
        M::Cmovge => sem(Op::Cmov(Cond::Ge)),
        M::Cmovle => sem(Op::Cmov(Cond::Le)),
        M::Cmovg => sem(Op::Cmov(Cond::G)),
        M::Seto => sem(Op::Setcc(Cond::O)),
        M::Setno => sem(Op::Setcc(Cond::No)),
        M::Setb => sem(Op::Setcc(Cond::B)),
        M::Setae => sem(Op::Setcc(Cond::Ae)),
        M::Sete => sem(Op::Setcc(Cond::E)),
        M::Setne => sem(Op::Setcc(Cond::Ne)),
        M::Setbe => sem(Op::Setcc(Cond::Be)),
        M::Seta => sem(Op::Setcc(Cond::A)),
        M::Sets => sem(Op::Setcc(Cond::S)),
        M::Setns => sem(Op::Setcc(Cond::Ns)),
        M::Setp => sem(Op::Setcc(Cond::P)),
        M::Setnp => sem(Op::Setcc(Cond::Np)),
        M::Setl => sem(Op::Setcc(Cond::L)),
        M::Setge => sem(Op::Setcc(Cond::Ge)),
        M::Setle => sem(Op::Setcc(Cond::Le)),
        M::Setg => sem(Op::Setcc(Cond::G)),
        // arithmetic and logic
        M::Add => sem(Op::Add),
        M::Adc => sem(Op::Adc),
        M::Sub => sem(Op::Sub),
        M::Sbb => sem(Op::Sbb),
        M::Cmp => sem(Op::Cmp),
        M::And => sem(Op::And),
        M::Or => sem(Op::Or),
        M::Xor => sem(Op::Xor),
        M::Test => sem(Op::Test),
        M::Inc => sem(Op::Inc),
        M::Dec => sem(Op::Dec),
        M::Neg => sem(Op::Neg),
        M::Not => sem(Op::Not),
        M::Adcx => sem(Op::Adcx),
        M::Adox => sem(Op::Adox),
        M::Mul => sem(Op::Mul),
        M::Imul => match code {
            Code::Imul_rm8 | Code::Imul_rm16 | Code::Imul_rm32 | Code::Imul_rm64 => sem(Op::Imul1),
            Code::Imul_r16_rm16 | Code::Imul_r32_rm32 | Code::Imul_r64_rm64 => sem(Op::Imul2),
            _ => sem(Op::Imul3),
        },
        M::Div => sem(Op::Div),
        M::Idiv => sem(Op::Idiv),
        M::Mulx => sem(Op::Mulx),
        M::Shl | M::Sal => sem(Op::Shl),
        M::Shr => sem(Op::Shr),
        M::Sar => sem(Op::Sar),
        M::Rol => sem(Op::Rol),
        M::Ror => sem(Op::Ror),
        M::Rcl => sem(Op::Rcl),
        M::Rcr => sem(Op::Rcr),
        M::Shld => sem(Op::Shld),
        M::Shrd => sem(Op::Shrd),
        M::Rorx => sem(Op::Rorx),
        M::Sarx => sem(Op::Sarx),
        M::Shlx => sem(Op::Shlx),
        M::Shrx => sem(Op::Shrx),
        M::Bt => sem(Op::Bt),
        M::Bts => sem(Op::Bts),
        M::Btr => sem(Op::Btr),
        M::Btc => sem(Op::Btc),
        M::Bsf => sem(Op::Bsf),
        M::Bsr => sem(Op::Bsr),
        M::Tzcnt => sem(Op::Tzcnt),
        M::Lzcnt => sem(Op::Lzcnt),
        M::Popcnt => sem(Op::Popcnt),
        M::Andn => sem(Op::Andn),
        M::Bextr => sem(Op::Bextr),
        M::Blsi => sem(Op::Blsi),
        M::Blsmsk => sem(Op::Blsmsk),
        M::Blsr => sem(Op::Blsr),
        M::Bzhi => sem(Op::Bzhi),
        M::Pdep => sem(Op::Pdep),
        M::Pext => sem(Op::Pext),
        M::Xadd => sem(Op::Xadd),
        M::Cmpxchg => sem(Op::Cmpxchg),
        M::Cmpxchg8b => complex(Op::Cmpxchg8b),
        M::Cmpxchg16b => complex(Op::Cmpxchg16b),
        M::Clc => sem(Op::Clc),
        M::Stc => sem(Op::Stc),
        M::Cmc => sem(Op::Cmc),
        M::Cld => sem(Op::Cld),
        M::Std => sem(Op::Std),
        // control flow
        M::Jmp => match code {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => sem(Op::Jmp),
            Code::Jmp_rm64 => sem(Op::JmpInd),
            _ => complex(Op::JmpFar),
        },
        M::Call => match code {
            Code::Call_rel32_64 => sem(Op::Call),
            Code::Call_rm64 => sem(Op::CallInd),
            _ => complex(Op::CallFar),
        },
        M::Ret => sem(Op::Ret),
        M::Retf => complex(Op::RetFar),
        M::Jo => sem(Op::Jcc(Cond::O)),
        M::Jno => sem(Op::Jcc(Cond::No)),
        M::Jb => sem(Op::Jcc(Cond::B)),
        M::Jae => sem(Op::Jcc(Cond::Ae)),
        M::Je => sem(Op::Jcc(Cond::E)),
        M::Jne => sem(Op::Jcc(Cond::Ne)),
        M::Jbe => sem(Op::Jcc(Cond::Be)),
        M::Ja => sem(Op::Jcc(Cond::A)),
        M::Js => sem(Op::Jcc(Cond::S)),
        M::Jns => sem(Op::Jcc(Cond::Ns)),
        M::Jp => sem(Op::Jcc(Cond::P)),
        M::Jnp => sem(Op::Jcc(Cond::Np)),
        M::Jl => sem(Op::Jcc(Cond::L)),
        M::Jge => sem(Op::Jcc(Cond::Ge)),
        M::Jle => sem(Op::Jcc(Cond::Le)),
        M::Jg => sem(Op::Jcc(Cond::G)),
        M::Jrcxz | M::Jecxz => sem(Op::Jrcxz),
        M::Loop => sem(Op::Loop),
        M::Loope => sem(Op::Loope),
        M::Loopne => sem(Op::Loopne),
        M::Int3 => complex(Op::Int3),
        M::Int => complex(Op::Int),
        M::Int1 => complex(Op::Int1),
        M::Iretd | M::Iretq | M::Iret => complex(Op::Iret),
        M::Ud0 | M::Ud1 | M::Ud2 => complex(Op::Ud),
        // #UD, not #GP, at CPL 3: outside SMM, SMAP's, where SVM is off (as in every guest here), where CPUID does not show it
        M::Rsm
        | M::Clac
        | M::Stac
        | M::Vmrun
        | M::Vmload
        | M::Vmsave
        | M::Stgi
        | M::Clgi
        | M::Skinit
        | M::Invlpga
        | M::Invlpgb
        | M::Tlbsync => complex(Op::Ud),
        // strings
        M::Movsb | M::Movsw | M::Movsq => complex(Op::Movs),
        M::Movsd if code == Code::Movsd_m32_m32 => complex(Op::Movs),
        M::Cmpsb | M::Cmpsw | M::Cmpsq => complex(Op::Cmps),
        M::Cmpsd if code == Code::Cmpsd_m32_m32 => complex(Op::Cmps),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => complex(Op::Stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => complex(Op::Lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => complex(Op::Scas),
        M::Insb | M::Insw | M::Insd => complex(Op::Ins),
        M::Outsb | M::Outsw | M::Outsd => complex(Op::Outs),
        // hints and fences; what only an 8087 or 80287 obeyed; RDSSP is a NOP where shadow stacks are off
        M::Nop
        | M::Reservednop
        | M::Endbr64
        | M::Endbr32
        | M::Pause
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchit0
        | M::Prefetchit1
        | M::Lfence
        | M::Sfence
        | M::Cldemote
        | M::Fneni
        | M::Fndisi
        | M::Fnsetpm
        | M::Rdsspd
        | M::Rdsspq => sem(Op::Nop),
        M::Mfence => sem(Op::Mfence),
        M::Clflush | M::Clflushopt | M::Clwb => sem(Op::Clflush),
        // AMD's own
        M::Extrq => complex(Op::Extrq),
        M::Insertq => complex(Op::Insertq),
        M::Movntss | M::Movntsd => complex(Op::Movnts),
        M::Clzero => complex(Op::Clzero),
        M::Monitorx => complex(Op::Monitorx),
        M::Mwaitx => complex(Op::Mwaitx),
        M::Rdpru => complex(Op::Rdpru),
        // system
        M::Syscall => complex(Op::Syscall),
        M::Cpuid => complex(Op::Cpuid),
        M::Rdtsc => complex(Op::Rdtsc),
        M::Rdtscp => complex(Op::Rdtscp),
        M::Rdpmc => complex(Op::Rdpmc),
        M::Rdpid => complex(Op::Rdpid),
        M::Rdmsr => complex(Op::Rdmsr),
        M::Wrmsr => complex(Op::Wrmsr),
        M::Xgetbv => complex(Op::Xgetbv),
        M::In => complex(Op::In),
        M::Out => complex(Op::Out),
        M::Hlt => complex(Op::Hlt),
        M::Vmmcall => complex(Op::Vmmcall),
        M::Vmgexit => complex(Op::Vmgexit),
        M::Wbinvd | M::Wbnoinvd => complex(Op::Wbinvd),
        M::Rdfsbase => complex(Op::Rdfsbase),
        M::Rdgsbase => complex(Op::Rdgsbase),
        M::Wrfsbase => complex(Op::Wrfsbase),
        M::Wrgsbase => complex(Op::Wrgsbase),
        M::Stmxcsr | M::Vstmxcsr => complex(Op::Stmxcsr),
        M::Ldmxcsr | M::Vldmxcsr => complex(Op::Ldmxcsr),
        M::Fxsave | M::Fxsave64 => complex(Op::Fxsave),
        M::Fxrstor | M::Fxrstor64 => complex(Op::Fxrstor),
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64 => {
            complex(Op::Xsave)
        }
        M::Xrstor | M::Xrstor64 => complex(Op::Xrstor),
        M::Rdrand => complex(Op::Rdrand),
        M::Rdseed => complex(Op::Rdseed),
        M::Lar | M::Lsl | M::Verr | M::Verw => complex(Op::SegCheck),
        M::Cli
        | M::Sti
        | M::Clts
        | M::Invd
        | M::Invlpg
        | M::Invpcid
        | M::Lgdt
        | M::Lidt
        | M::Lldt
        | M::Ltr
        | M::Lmsw
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Smsw
        | M::Str
        | M::Swapgs
        | M::Sysret
        | M::Sysretq
        | M::Xsetbv
        | M::Xsaves
        | M::Xsaves64
        | M::Xrstors
        | M::Xrstors64
        | M::Psmash
        | M::Pvalidate
        | M::Rmpadjust
        | M::Rmpupdate
        | M::Lss
        | M::Lfs
        | M::Lgs => privileged,
        _ => None,
    }
}

/// Encodings that no byte sequence reaches in 64-bit mode, though their mnemonic does. (66-prefixed near
/// branches have 64-bit operands here.)
fn only_outside_long_mode(code: Code) -> bool {
    use CpuidFeature as F;
    if code.cpuid_features().iter().any(|f| {
        matches!(
            f,
            F::KNC
                | F::INTEL386_A0_ONLY
                | F::INTEL486_A_ONLY
                | F::INTEL8086_ONLY
                | F::INTEL286_ONLY
                | F::INTEL386_ONLY
                | F::MOV_TR
                | F::UMOV
        )
    }) {
        return true;
    }
    matches!(
        code,
        Code::Inc_r16
            | Code::Inc_r32
            | Code::Dec_r16
            | Code::Dec_r32
            | Code::Push_r32
            | Code::Pop_r32
            | Code::Push_rm32
            | Code::Pop_rm32
            | Code::Pushd_imm8
            | Code::Pushd_imm32
            | Code::Pushw_CS
            | Code::Pushd_CS
            | Code::Pushw_DS
            | Code::Pushd_DS
            | Code::Pushw_ES
            | Code::Pushd_ES
            | Code::Pushw_SS
            | Code::Pushd_SS
            | Code::Pushd_FS
            | Code::Pushd_GS
            | Code::Popw_CS
            | Code::Popw_DS
            | Code::Popd_DS
            | Code::Popw_ES
            | Code::Popd_ES
            | Code::Popw_SS
            | Code::Popd_SS
            | Code::Popd_FS
            | Code::Popd_GS
            | Code::Leaved
            | Code::Enterd_imm16_imm8
            | Code::Retnd
            | Code::Retnd_imm16
            | Code::Mov_r32_cr
            | Code::Mov_cr_r32
            | Code::Mov_r32_dr
            | Code::Mov_dr_r32
            | Code::Jo_rel8_16
            | Code::Jo_rel8_32
            | Code::Jo_rel16
            | Code::Jo_rel32_32
            | Code::Jno_rel8_16
            | Code::Jno_rel8_32
            | Code::Jno_rel16
            | Code::Jno_rel32_32
            | Code::Jb_rel8_16
            | Code::Jb_rel8_32
            | Code::Jb_rel16
            | Code::Jb_rel32_32
            | Code::Jae_rel8_16
            | Code::Jae_rel8_32
            | Code::Jae_rel16
            | Code::Jae_rel32_32
            | Code::Je_rel8_16
            | Code::Je_rel8_32
            | Code::Je_rel16
            | Code::Je_rel32_32
            | Code::Jne_rel8_16
            | Code::Jne_rel8_32
            | Code::Jne_rel16
            | Code::Jne_rel32_32
            | Code::Jbe_rel8_16
            | Code::Jbe_rel8_32
            | Code::Jbe_rel16
            | Code::Jbe_rel32_32
            | Code::Ja_rel8_16
            | Code::Ja_rel8_32
            | Code::Ja_rel16
            | Code::Ja_rel32_32
            | Code::Js_rel8_16
            | Code::Js_rel8_32
            | Code::Js_rel16
            | Code::Js_rel32_32
            | Code::Jns_rel8_16
            | Code::Jns_rel8_32
            | Code::Jns_rel16
            | Code::Jns_rel32_32
            | Code::Jp_rel8_16
            | Code::Jp_rel8_32
            | Code::Jp_rel16
            | Code::Jp_rel32_32
            | Code::Jnp_rel8_16
            | Code::Jnp_rel8_32
            | Code::Jnp_rel16
            | Code::Jnp_rel32_32
            | Code::Jl_rel8_16
            | Code::Jl_rel8_32
            | Code::Jl_rel16
            | Code::Jl_rel32_32
            | Code::Jge_rel8_16
            | Code::Jge_rel8_32
            | Code::Jge_rel16
            | Code::Jge_rel32_32
            | Code::Jle_rel8_16
            | Code::Jle_rel8_32
            | Code::Jle_rel16
            | Code::Jle_rel32_32
            | Code::Jg_rel8_16
            | Code::Jg_rel8_32
            | Code::Jg_rel16
            | Code::Jg_rel32_32
            | Code::Loop_rel8_16_CX
            | Code::Loop_rel8_32_CX
            | Code::Loop_rel8_16_ECX
            | Code::Loop_rel8_32_ECX
            | Code::Loop_rel8_16_RCX
            | Code::Loope_rel8_16_CX
            | Code::Loope_rel8_32_CX
            | Code::Loope_rel8_16_ECX
            | Code::Loope_rel8_32_ECX
            | Code::Loope_rel8_16_RCX
            | Code::Loopne_rel8_16_CX
            | Code::Loopne_rel8_32_CX
            | Code::Loopne_rel8_16_ECX
            | Code::Loopne_rel8_32_ECX
            | Code::Loopne_rel8_16_RCX
            | Code::Jcxz_rel8_16
            | Code::Jcxz_rel8_32
            | Code::Jecxz_rel8_16
            | Code::Jecxz_rel8_32
            | Code::Jrcxz_rel8_16
            | Code::Call_rel16
            | Code::Call_rel32_32
            | Code::Call_rm16
            | Code::Call_rm32
            | Code::Jmp_rel8_16
            | Code::Jmp_rel8_32
            | Code::Jmp_rel16
            | Code::Jmp_rel32_32
            | Code::Jmp_rm16
            | Code::Jmp_rm32
            | Code::Retnw
            | Code::Retnw_imm16
            | Code::Pushfd
            | Code::Popfd
    )
}
