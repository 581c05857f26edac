//! What a case's instructions promise, and whether an outcome keeps it.

use crate::case::Case;
use crate::forms::decode;
use crate::host::{Vendor, amd, host};
use crate::masks;
use crate::outcome::{End, Outcome};
use crate::policy::{self, Policy};
use iced_x86::{FlowControl, Instruction, Mnemonic as M};
use sevlab_cpu::Op;
use sevlab_cpu::flags::ARITH;
use sevlab_cpu::table::row;

/// RF is part of the image that an exception pushes, not of the state before.
const RF: u64 = 1 << 16;

/// The instructions of a case, with what is undefined before each.
pub struct Analysis {
    /// In address order, the first at [`Case::at`].
    pub instructions: Vec<Instruction>,
    /// Undefined flags before each instruction, and behind the last.
    pub undefined: Vec<u64>,
    /// Position of the first instruction that may leave the straight line.
    pub first_branch: usize,
    /// The last one that may lead to what lies before it.
    last_return: Option<usize>,
    /// What is special about the last instruction.
    pub last: Policy,
    at: u64,
    code: Vec<u8>,
}

/// Whether it may lead to what lies before it, or to itself.
fn goes_back(i: &Instruction) -> bool {
    match i.flow_control() {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call => {
            i.near_branch_target() <= i.ip()
        }
        FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall => true,
        _ => false,
    }
}

impl Analysis {
    /// Looks at a case's code.
    #[must_use]
    pub fn new(case: &Case) -> Self {
        let mut instructions = Vec::new();
        let mut undefined = vec![0];
        let (mut flags, mut sticky) = (0, 0);
        let (mut first_branch, mut last_return) = (usize::MAX, None);
        let mut at = 0;
        while at < case.code().len() {
            let Some(i) = decode(&case.code()[at..], case.at + at as u64) else {
                break;
            };
            at += i.len();
            let branches = !matches!(
                i.flow_control(),
                FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt
            );
            if branches {
                sticky |= flags;
                first_branch = first_branch.min(instructions.len());
                if goes_back(&i) {
                    last_return = Some(instructions.len());
                }
            }
            flags = masks::after(&i, flags) | sticky;
            instructions.push(i);
            undefined.push(flags);
        }
        let last = instructions
            .last()
            .map_or(Policy::Compare, |i| policy::policy(i.code()));
        Self {
            instructions,
            undefined,
            first_branch,
            last_return,
            last,
            at: case.at,
            code: case.code().to_vec(),
        }
    }

    /// Flags that may be undefined where the case has stopped, before instruction `n` or at an address that is none's.
    fn undefined_at(&self, n: usize, is_behind: bool) -> u64 {
        let lost = n == self.instructions.len() && !is_behind;
        if lost || self.last_return.is_some_and(|back| back >= n) {
            return self.undefined.iter().fold(0, |m, u| m | u);
        }
        self.undefined[n]
    }

    /// The instruction at `rip`, which may be in the middle of another.
    #[must_use]
    pub fn instruction(&self, rip: u64) -> Option<Instruction> {
        let from = usize::try_from(rip.checked_sub(self.at)?).ok()?;
        decode(self.code.get(from..)?, rip)
    }

    /// The code from `rip` on; nothing if it is elsewhere.
    #[must_use]
    pub fn bytes(&self, rip: u64) -> &[u8] {
        rip.checked_sub(self.at)
            .and_then(|from| self.code.get(usize::try_from(from).ok()?..))
            .unwrap_or(&[])
    }

    /// Position of the instruction at `rip`; the number of instructions if it is behind the last or nowhere.
    #[must_use]
    pub fn position(&self, rip: u64) -> usize {
        self.instructions
            .iter()
            .position(|i| i.ip() == rip)
            .unwrap_or(self.instructions.len())
    }

    /// The instruction that is run by the guest only, if that is the last.
    #[must_use]
    pub fn guest_only(&self) -> Option<&Instruction> {
        let i = self.instructions.last()?;
        matches!(self.last, Policy::Guest(..)).then_some(i)
    }

    /// How many instructions surely ran when `o` is what they left behind.
    #[must_use]
    pub fn executed(&self, o: &Outcome) -> usize {
        let n = match o.end {
            // #UD is what some are for.
            End::Exception { vector: 6, .. }
                if self
                    .instructions
                    .get(self.position(o.rip))
                    .is_some_and(|i| row(i.code()).op == Op::Ud) =>
            {
                self.position(o.rip) + 1
            }
            End::Exception { vector: 6, .. } | End::Endless | End::Other(_) => {
                self.position(o.rip).min(self.instructions.len())
            }
            // A trap's RIP is behind its instruction.
            End::Exception {
                vector: 1 | 3 | 4, ..
            } => self.position(o.rip),
            _ => (self.position(o.rip) + 1).min(self.instructions.len()),
        };
        if n > self.first_branch {
            self.first_branch + 1
        } else {
            n
        }
    }
}

/// How strictly MXCSR's sticky flags are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sticky {
    /// As on hardware.
    Exact,
    /// Not at all: a floating-point operation whose result nobody reads may not be carried out.
    Ignored,
}

/// One field that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Its name.
    pub field: String,
    /// What the reference has.
    pub expected: String,
    /// What the engine has.
    pub got: String,
}

/// Brings the reference's outcome into the form that the guest's must have: intercepted instructions stop before they
/// do anything, and what is not run natively ends as the policy says.
fn expect(a: &Analysis, reference: &Outcome, got: &Outcome, native: bool) -> Outcome {
    let mut e = reference.clone();
    let Some(i) = a.instructions.last() else {
        return e;
    };
    if !native {
        if let Policy::Varies { first, gpr, .. } = a.last
            && e.rip == got.rip
            && e.rip == i.next_ip()
        {
            take_results(i, first, gpr, &mut e, got);
        }
        return e;
    }
    match a.last {
        Policy::Varies { first, gpr, .. }
            if e.rip == i.next_ip() && a.first_branch == usize::MAX =>
        {
            take_results(i, first, gpr, &mut e, got);
        }
        // Behind a branch it may not have run.
        Policy::Intercepted { gpr }
            if e.rip == i.next_ip()
                && (matches!(e.end, End::Exception { vector: 1 | 13, .. })
                    || e.rip == crate::layout::CODE_END)
                && (a.first_branch == usize::MAX || matches!(got.end, End::Intercept(..))) =>
        {
            take_results(i, false, gpr, &mut e, got);
            e.rip = i.ip();
            let name = format!("{:?}", i.mnemonic());
            e.end = End::Intercept(name, i.len() as u8);
        }
        Policy::Guest(expected, _) if e.rip == i.ip() && e.end == End::PROTECTION => {
            if expected.met(&got.end) {
                e.end = got.end.clone();
                if got.end == End::Syscall {
                    e.gpr[1] = i.next_ip();
                    e.gpr[11] = e.flags & !RF;
                    e.rip = i.next_ip();
                }
            } else {
                e.end = End::Other(format!("{expected:?}"));
            }
        }
        _ => {}
    }
    e
}

fn take_results(i: &Instruction, first: bool, gpr: u16, e: &mut Outcome, got: &Outcome) {
    let mut gpr = gpr;
    // The host's generator may be exhausted.
    e.flags = e.flags & !1 | got.flags & 1;
    if first {
        let r = i.op_register(0);
        if r.size() == 2 {
            let n = r.full_register().number();
            e.gpr[n] = e.gpr[n] & !0xffff | got.gpr[n] & 0xffff;
        } else if r.is_gpr() {
            gpr |= 1 << r.full_register().number();
            // The upper half is zero.
            if r.size() == 4 && got.gpr[r.full_register().number()] >> 32 != 0 {
                gpr = 0;
            }
        }
    }
    for n in 0..16 {
        if gpr >> n & 1 != 0 {
            e.gpr[n] = got.gpr[n];
        }
    }
}

/// Everything that differs between the reference and an engine; nothing if the outcomes agree.
#[must_use]
pub fn compare(
    a: &Analysis,
    reference: &Outcome,
    native: bool,
    got: &Outcome,
    sticky: Sticky,
) -> Vec<Difference> {
    let mut e;
    let expected = if a.last == Policy::Compare {
        reference
    } else {
        e = expect(a, reference, got, native);
        if let (End::Intercept(name, _), End::Intercept(kind, len)) = (&e.end, &got.end)
            && kind.starts_with(name.as_str())
        {
            e.end = End::Intercept(kind.clone(), *len);
            if let Some(i) = a.instructions.last()
                && i.len() != usize::from(*len)
            {
                e.end = End::Intercept(kind.clone(), i.len() as u8);
            }
        }
        &e
    };
    let mut out = Vec::new();
    let mut put = |field: String, expected: String, got: String| {
        out.push(Difference {
            field,
            expected,
            got,
        });
    };
    let mut ends = (expected.end.clone(), got.end.clone());
    forgive_kernel_half(&mut ends.0);
    forgive_kernel_half(&mut ends.1);
    if ends.0 != ends.1 {
        put(
            "end".into(),
            format!("{:x?}", expected.end),
            format!("{:x?}", got.end),
        );
    }
    let hex = |v: u64| format!("{v:x}");
    for (n, name) in crate::report::GPR.iter().enumerate() {
        if expected.gpr[n] != got.gpr[n] {
            put((*name).into(), hex(expected.gpr[n]), hex(got.gpr[n]));
        }
    }
    if expected.rip != got.rip {
        put("rip".into(), hex(expected.rip), hex(got.rip));
    }
    let at = a.position(expected.rip);
    let behind = a.instructions.last().map_or(0, Instruction::next_ip);
    let mask = a.undefined_at(at, expected.rip == behind);
    let flags = !RF & !(mask & ARITH);
    if (expected.flags ^ got.flags) & flags != 0 {
        put(
            "rflags".into(),
            hex(expected.flags & flags),
            hex(got.flags & flags),
        );
    }
    let sticky_bits = if sticky == Sticky::Ignored { 0x3f } else { 0 };
    if (expected.mxcsr ^ got.mxcsr) & !sticky_bits != 0 {
        put(
            "mxcsr".into(),
            hex(expected.mxcsr.into()),
            hex(got.mxcsr.into()),
        );
    }
    for (name, x, y) in [
        ("fs base", expected.fs, got.fs),
        ("gs base", expected.gs, got.gs),
    ] {
        if x != y {
            put(name.into(), hex(x), hex(y));
        }
    }
    // An exception's return to user mode makes null selectors 0.
    let selectors = |o: &Outcome| o.selectors.map(|s| if s < 4 { 0 } else { s });
    if selectors(expected) != selectors(got) {
        put(
            "ds, es, fs, gs".into(),
            format!("{:x?}", expected.selectors),
            format!("{:x?}", got.selectors),
        );
    }
    for n in 0..16 {
        let (x, y) = (expected.ymm[n], got.ymm[n]);
        if x != y {
            let text =
                |v: [u64; 4]| format!("{:016x}_{:016x}_{:016x}_{:016x}", v[3], v[2], v[1], v[0]);
            put(format!("ymm{n}"), text(x), text(y));
        }
    }
    compare_x87(expected, got, native, &mut put);
    if expected.memory != got.memory {
        let forgiven = native && amd() && a.instructions.iter().any(saves_mask);
        let differ = (0..expected.memory.len()).filter(|k| {
            let (x, y) = (expected.memory[*k], got.memory[*k]);
            // AMD's MXCSR mask, 28 bytes into an area at a multiple of 16, has bit 17 for misaligned operands.
            x != y && !(forgiven && k % 16 == 14 && (x, y) == (2, 0))
        });
        for k in differ.take(16) {
            put(
                format!("[{:x}]", crate::layout::address(k)),
                format!("{:02x}", expected.memory[k]),
                format!("{:02x}", got.memory[k]),
            );
        }
    }
    out
}

/// Whether an instruction stores the mask of MXCSR's bits.
#[must_use]
pub fn saves_mask(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Fxsave | M::Fxsave64 | M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64
    )
}

/// Whether an instruction stores the x87 unit's last opcode and operand address.
#[must_use]
pub fn stores_pointers(i: &Instruction) -> bool {
    saves_mask(i) || matches!(i.mnemonic(), M::Fnstenv | M::Fnsave)
}

/// Linux says that faults behind the last page that a process may have are protection violations, so as not to tell what is mapped there.
fn forgive_kernel_half(end: &mut End) {
    if let End::Exception {
        vector: 14,
        error,
        address,
    } = end
        && *address >= 0x7fff_ffff_f000
    {
        *error |= 1;
    }
}

fn compare_x87(
    e: &Outcome,
    g: &Outcome,
    native: bool,
    put: &mut impl FnMut(String, String, String),
) {
    let (x, mut y) = (&e.x87, g.x87);
    if native {
        // When the last opcode and the addresses are kept is up to the processor.
        let none = (x.opcode, x.instruction, x.data) == (0, 0, 0);
        match host().vendor {
            // AMD's save zeros unless an unmasked exception is pending, even with the feature that is said to save them
            // always (APM vol. 3, CPUID 8000_0008 EBX[2]). One may be pending now, and not have been when the kernel
            // switched to another process and back.
            Vendor::Amd if none => {
                (y.opcode, y.instruction, y.data) = (0, 0, 0);
            }
            Vendor::Amd => {}
            // Intel's newer ones keep opcode and operand for unmasked exceptions only (CPUID 7.EBX[6], SDM vol. 1, 8.1.8
            // and 8.1.9).
            Vendor::Intel | Vendor::Other => (y.opcode, y.data) = (x.opcode, x.data),
        }
        // Non-canonical pointers that were loaded are made canonical at a width that is the processor's.
        for (y, x) in [(&mut y.instruction, x.instruction), (&mut y.data, x.data)] {
            if (*y ^ x) & 0xffff_ffff_ffff == 0 {
                *y = x;
            }
        }
    }
    let y = &y;
    if x == y {
        return;
    }
    for (name, a, b) in [
        ("fcw", u64::from(x.control), u64::from(y.control)),
        ("fsw", u64::from(x.status), u64::from(y.status)),
        ("ftw", u64::from(x.tag), u64::from(y.tag)),
        ("fop", u64::from(x.opcode), u64::from(y.opcode)),
        ("fip", x.instruction, y.instruction),
        ("fdp", x.data, y.data),
    ] {
        if a != b {
            put(name.into(), format!("{a:x}"), format!("{b:x}"));
        }
    }
    for n in 0..8 {
        if x.st[n] != y.st[n] {
            let text = |s: (u64, u16)| format!("{:04x}_{:016x}", s.1, s.0);
            put(format!("st{n}"), text(x.st[n]), text(y.st[n]));
        }
    }
}
