//! Random guest programs: items with labels, so that instructions can be dropped from them.
#![allow(dead_code)] // each test file uses its part

use super::forms::{Forms, encode, has_memory, register_like};
use super::machine::{
    ALIAS, CODE, COUNTER, DATA, DATA_PAGES, FS_BASE, INDEX, ISLAND, MXCSRS, PAGE, READ_ONLY, Rng,
    STACK, STACK_PAGES, UNMAPPED, pointer,
};
use iced_x86::code_asm::{CodeAssembler, eax, r15d};
use iced_x86::{
    Code, Decoder, DecoderOptions, IcedError, Instruction, InstructionInfoFactory, MemoryOperand,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};
use sevlab_cpu::table::{self, Route};

/// Registers that random instructions may write freely.
const SCRATCH: [u64; 7] = [0, 1, 2, 8, 9, 10, 11];

/// One piece of a program. Targets are item numbers.
#[derive(Clone, Debug)]
pub enum Item {
    Plain(Instruction),
    /// Jcc by condition number.
    Branch(u8, usize),
    Jump(usize),
    Call(usize),
    /// JRCXZ and LOOPs: the opcode byte.
    Short(u8, usize),
    /// LEA of an item's address into a register.
    Address(Register, usize),
    /// A store of these bytes at an offset of an item's code, through the alias or directly.
    Patch(usize, u8, Vec<u8>, bool),
}

/// A program: items, the last of which stops.
#[derive(Clone, Debug)]
pub struct Program {
    pub items: Vec<Item>,
    /// Where the code begins in its page.
    pub at: u64,
    /// A comparison follows each instruction that leaves flags undefined, so that nobody sees those.
    pub defined: bool,
}

/// Whether what the architecture leaves undefined of the flags may be the host's own in a copy of the instruction. AF of what clears CF and OF
/// is 0 everywhere.
fn leaves_flags(i: &Instruction) -> bool {
    // By as many bits as there are, with CF, the decoder takes them for instructions that change no flags. AMD's processors change OF.
    let whole_turns = matches!(i.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr)
        && i.op1_kind() == OpKind::Immediate8
        && i.immediate8() & 0x1f > 1;
    let undefined = i.rflags_undefined();
    whole_turns || undefined & !RflagsBits::AF != 0 || undefined != 0 && i.rflags_cleared() == 0
}

impl Program {
    /// The code, from [`CODE`] on.
    pub fn assemble(&self) -> Vec<u8> {
        // Lengths depend on nothing but the item, so one pass places and one encodes.
        let mut at = CODE + self.at;
        let mut places = Vec::with_capacity(self.items.len() + 1);
        for i in &self.items {
            places.push(at);
            at += self.encode(i, at, None).len() as u64;
        }
        places.push(at);
        let mut code = Vec::new();
        if self.at > 0 {
            // A jump to where the program begins, then something that is not run.
            code.push(0xe9);
            code.extend((self.at as u32 - 5).to_le_bytes());
            code.resize(self.at as usize, 0xcc);
        }
        for (i, &at) in self.items.iter().zip(&places) {
            code.extend(self.encode(i, at, Some(&places)));
        }
        code
    }

    fn encode(&self, item: &Item, at: u64, places: Option<&[u64]>) -> Vec<u8> {
        let target = |n: &usize| places.map_or(at, |p| p[(*n).min(p.len() - 1)]);
        let near = |op: &[u8], n: &usize| {
            let mut b = op.to_vec();
            let end = at + op.len() as u64 + 4;
            b.extend((target(n).wrapping_sub(end) as u32).to_le_bytes());
            b
        };
        match item {
            Item::Plain(i) => {
                let mut bytes = encode(i, at).unwrap_or_else(|| vec![0x90]);
                if self.defined && leaves_flags(i) {
                    // CMP AL, imm8
                    bytes.extend([0x3c, i.code() as u8]);
                }
                bytes
            }
            Item::Branch(cc, n) => near(&[0x0f, 0x80 | cc], n),
            Item::Jump(n) => near(&[0xe9], n),
            Item::Call(n) => near(&[0xe8], n),
            Item::Short(op, n) => {
                let rel = target(n).wrapping_sub(at + 2) as i64;
                match i8::try_from(rel) {
                    Ok(rel) => vec![*op, rel as u8],
                    Err(_) => vec![0x66, 0x90],
                }
            }
            Item::Address(r, n) => {
                let m = MemoryOperand::with_base_displ(Register::RIP, target(n) as i64);
                let i = Instruction::with2(Code::Lea_r64_m, *r, m).expect("LEA");
                encode(&i, at).expect("a near address")
            }
            Item::Patch(n, offset, bytes, alias) => {
                let base = target(n) + u64::from(*offset);
                let to = if *alias { base - CODE + ALIAS } else { base };
                // MOV m, imm at an absolute 32-bit address.
                let mut b = match bytes.len() {
                    1 => vec![0xc6, 0x04, 0x25],
                    2 => vec![0x66, 0xc7, 0x04, 0x25],
                    _ => vec![0xc7, 0x04, 0x25],
                };
                b.extend((to as u32).to_le_bytes());
                b.extend(bytes);
                b
            }
        }
    }

    /// The program without item `n`.
    pub fn without(&self, n: usize) -> Self {
        let mut p = self.clone();
        p.items.remove(n);
        let move_up = |t: &mut usize| {
            if *t > n {
                *t -= 1;
            }
        };
        for i in &mut p.items {
            match i {
                Item::Branch(_, t)
                | Item::Jump(t)
                | Item::Call(t)
                | Item::Short(_, t)
                | Item::Address(_, t)
                | Item::Patch(t, ..) => move_up(t),
                Item::Plain(_) => {}
            }
        }
        p
    }
}

/// What kinds of items a program is made of, chosen anew for each.
struct Mix {
    integer: u64,
    flags: u64,
    stack: u64,
    vector: u64,
    x87: u64,
    complex: u64,
    control: u64,
    strings: u64,
    patches: u64,
}

pub struct Generator<'f> {
    forms: &'f Forms,
    r: Rng,
    info: InstructionInfoFactory,
    items: Vec<Item>,
}

impl<'f> Generator<'f> {
    pub fn new(forms: &'f Forms, seed: u64) -> Self {
        Self {
            forms,
            r: Rng::new(seed),
            info: InstructionInfoFactory::new(),
            items: Vec::new(),
        }
    }

    /// The program that belongs to the seed.
    pub fn program(mut self) -> Program {
        let mix = match self.r.below(6) {
            0 => Mix {
                integer: 10,
                flags: 10,
                stack: 1,
                vector: 0,
                x87: 0,
                complex: 0,
                control: 5,
                strings: 0,
                patches: 0,
            },
            1 => Mix {
                integer: 3,
                flags: 2,
                stack: 1,
                vector: 20,
                x87: 0,
                complex: 0,
                control: 2,
                strings: 0,
                patches: 0,
            },
            2 => Mix {
                integer: 6,
                flags: 6,
                stack: 4,
                vector: 3,
                x87: 1,
                complex: 2,
                control: 4,
                strings: 2,
                patches: 1,
            },
            3 => Mix {
                integer: 5,
                flags: 20,
                stack: 0,
                vector: 0,
                x87: 0,
                complex: 0,
                control: 8,
                strings: 0,
                patches: 0,
            },
            4 => Mix {
                integer: 8,
                flags: 6,
                stack: 3,
                vector: 3,
                x87: 0,
                complex: 0,
                control: 6,
                strings: 1,
                patches: 3,
            },
            _ => Mix {
                integer: 8,
                flags: 8,
                stack: 2,
                vector: 8,
                x87: 1,
                complex: 1,
                control: 3,
                strings: 1,
                patches: 0,
            },
        };
        let length = 3 + self.r.below(28) as usize;
        while self.items.len() < length {
            self.piece(&mix);
        }
        self.stop();
        if self.items.iter().any(|i| matches!(i, Item::Call(_))) {
            let function = self.items.len();
            for _ in 0..1 + self.r.below(4) {
                self.simple(&mix);
            }
            let code = if self.r.one_in(4) {
                Code::Retnq_imm16
            } else {
                Code::Retnq
            };
            let ret = if code == Code::Retnq {
                Instruction::with(code)
            } else {
                Instruction::with1(code, 8u32).expect("RET imm16")
            };
            self.items.push(Item::Plain(ret));
            for i in &mut self.items {
                if let Item::Call(t) = i
                    && *t == usize::MAX
                {
                    *t = function;
                }
            }
        }
        // Now and then the code crosses a page.
        let at = if self.r.one_in(8) {
            PAGE - 10 - self.r.below(60)
        } else {
            0
        };
        Program {
            items: self.items,
            at,
            defined: self.r.one_in(2),
        }
    }

    fn push(&mut self, i: Instruction) {
        self.items.push(Item::Plain(i));
    }

    fn stop(&mut self) {
        let code = self.r.pick(&[
            Code::Cpuid,
            Code::Cpuid,
            Code::Syscall,
            Code::Vmmcall,
            Code::Hlt,
            Code::Ud2,
        ]);
        self.push(Instruction::with(code));
    }

    fn piece(&mut self, mix: &Mix) {
        if mix.vector > 2 && self.r.one_in(40) {
            let i = self.ldmxcsr();
            return self.push(i);
        }
        let total = mix.integer + mix.flags + mix.stack + mix.vector + mix.x87 + mix.complex;
        let n = self
            .r
            .below(total + mix.control + mix.strings + mix.patches);
        if n < total {
            return self.simple(mix);
        }
        let n = n - total;
        if n < mix.control {
            self.control(mix);
        } else if n < mix.control + mix.strings {
            self.string();
        } else {
            self.patch();
        }
    }

    fn simple(&mut self, mix: &Mix) {
        let f = self.forms;
        let groups = [
            (mix.integer, &f.integer),
            (mix.flags, &f.flags),
            (mix.stack, &f.stack),
            (mix.vector, &f.vector),
            (mix.x87, &f.x87),
            (mix.complex, &f.complex),
        ];
        let mut n = self.r.below(groups.iter().map(|g| g.0).sum());
        for (weight, group) in groups {
            if n >= weight {
                n -= weight;
                continue;
            }
            let mut form = group[self.r.below(group.len() as u64) as usize];
            if Forms::weight(&form) == 1 && self.r.one_in(2) {
                form = group[self.r.below(group.len() as u64) as usize];
            }
            if super::forms::shifts_by_cl(&form) && self.r.one_in(2) {
                let count = self
                    .r
                    .pick(&[0u32, 0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64]);
                self.push(
                    Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count).expect("MOV"),
                );
            }
            if super::forms::divides(&form) && !self.r.one_in(4) {
                self.push(
                    Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0u32).expect("MOV"),
                );
            }
            let i = self.instance(&form);
            self.push(i);
            return;
        }
    }

    /// Forward and backward branches, loops, calls, indirect jumps.
    fn control(&mut self, mix: &Mix) {
        let here = self.items.len();
        let ahead = here + 2 + self.r.below(4) as usize;
        match self.r.below(12) {
            0..=4 => {
                let cc = self.r.below(16) as u8;
                self.items.push(Item::Branch(cc, ahead));
                if self.r.one_in(3) {
                    let cc = self.r.below(16) as u8;
                    self.items.push(Item::Branch(cc, ahead + 1));
                }
            }
            5 => self.items.push(Item::Jump(ahead)),
            6 | 7 => {
                // A loop that the counter bounds.
                let n = self.r.below(6) as u32;
                self.push(Instruction::with2(Code::Mov_r32_imm32, Register::R15D, n).expect("MOV"));
                let top = self.items.len();
                for _ in 0..1 + self.r.below(5) {
                    self.simple(mix);
                }
                if self.r.one_in(3) {
                    let out = self.items.len() + 3 + self.r.below(2) as usize;
                    let cc = self.r.below(16) as u8;
                    self.items.push(Item::Branch(cc, out));
                }
                let (i, cc) = match self.r.below(4) {
                    0 => (
                        Instruction::with2(Code::Sub_rm64_imm8, Register::R15, 1),
                        0xf,
                    ),
                    1 => (Instruction::with1(Code::Dec_rm32, Register::R15D), 0xf),
                    2 => (Instruction::with1(Code::Dec_rm64, Register::R15), 0x9),
                    _ => (
                        Instruction::with2(Code::Add_rm32_imm8, Register::R15D, -1),
                        0xf,
                    ),
                };
                self.push(i.expect("a counter's step"));
                self.items.push(Item::Branch(cc, top));
            }
            8 => {
                // Backwards on any condition, as long as the counter lasts.
                let back = here.saturating_sub(1 + self.r.below(5) as usize);
                self.push(Instruction::with1(Code::Dec_rm64, Register::R15).expect("DEC"));
                self.items.push(Item::Branch(8, here + 3));
                let cc = self.r.below(16) as u8;
                self.items.push(Item::Branch(cc, back));
            }
            9 => {
                let op = self.r.pick(&[0xe0u8, 0xe1, 0xe2, 0xe3]);
                self.items.push(Item::Short(op, ahead));
            }
            10 => self.items.push(Item::Call(usize::MAX)),
            _ => {
                let r = Register::RAX + self.r.pick(&SCRATCH) as u32;
                self.items.push(Item::Address(r, ahead + 1));
                match self.r.below(3) {
                    0 => self.push(Instruction::with1(Code::Jmp_rm64, r).expect("JMP")),
                    1 => self.push(Instruction::with1(Code::Call_rm64, r).expect("CALL")),
                    _ => {
                        self.push(Instruction::with1(Code::Push_r64, r).expect("PUSH"));
                        self.push(Instruction::with(Code::Retnq));
                    }
                }
            }
        }
    }

    fn string(&mut self) {
        let n = self.r.pick(&[0u32, 1, 2, 3, 7, 16, 40, 300]);
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, n).expect("MOV"));
        for (r, base) in [
            (Register::RSI, Register::RBX),
            (Register::RDI, Register::RBP),
        ] {
            let m = MemoryOperand::with_base_displ(base, self.r.below(0x700) as i64 - 0x200);
            self.push(Instruction::with2(Code::Lea_r64_m, r, m).expect("LEA"));
        }
        if self.r.one_in(8) {
            self.push(Instruction::with(Code::Std));
        }
        let n = self.r.below(self.forms.strings.len() as u64) as usize;
        let mut i = self.forms.strings[n];
        i.set_has_rep_prefix(false);
        i.set_has_repne_prefix(false);
        match self.r.below(5) {
            0 => {}
            1 => i.set_has_repne_prefix(true),
            _ => i.set_has_rep_prefix(true),
        }
        self.push(i);
        self.push(Instruction::with(Code::Cld));
    }

    fn patch(&mut self) {
        if self.r.one_in(4) {
            // Anything anywhere.
            let target = self.r.below(self.items.len() as u64 + 6) as usize;
            let bytes = vec![self.r.next() as u8];
            let (offset, alias) = (self.r.below(4) as u8, self.r.one_in(2));
            self.items.push(Item::Patch(target, offset, bytes, alias));
            return;
        }
        // The immediate of an instruction ahead or behind.
        let r = Register::EAX + self.r.pick(&SCRATCH[..3]) as u32;
        let i = Instruction::with2(Code::Mov_r32_imm32, r, self.r.next() as u32).expect("MOV");
        let bytes = (self.r.next() as u32).to_le_bytes()[..self.r.pick(&[1, 2, 4])].to_vec();
        let alias = self.r.one_in(2);
        let here = self.items.len();
        if self.r.one_in(2) {
            self.items.push(Item::Patch(here + 1, 1, bytes, alias));
            self.push(i);
        } else {
            self.push(i);
            self.items.push(Item::Patch(here, 1, bytes, alias));
        }
    }

    /// A random instance of a form: registers, immediates and memory operand changed wherever the encoding allows.
    pub fn instance(&mut self, form: &Instruction) -> Instruction {
        let mut i = *form;
        if has_memory(form) {
            self.place(&mut i);
        }
        for n in 0..i.op_count() {
            let kind = i.op_kind(n);
            for _ in 0..4 {
                let mut next = i;
                match kind {
                    OpKind::Register => {
                        let like = i.op_register(n);
                        let mut random = self.r.next() >> 3;
                        if like.is_gpr() && !self.r.one_in(3) {
                            random = self.r.pick(&SCRATCH);
                            if like.is_gpr8() {
                                // AL to R15L are numbered with four more in between.
                                random = if random < 4 { random } else { random + 4 };
                            }
                        }
                        next.set_op_register(n, register_like(like, random));
                    }
                    OpKind::Immediate8 | OpKind::Immediate8_2nd => {
                        let v = self.r.value() as i8;
                        next.set_immediate_i64(n, i64::from(v));
                    }
                    OpKind::Immediate16 | OpKind::Immediate32 | OpKind::Immediate64 => {
                        next.set_immediate_i64(n, self.r.value() as i64);
                    }
                    OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => {
                        let v = self.r.value() as i8;
                        next.set_immediate_i64(n, i64::from(v));
                    }
                    OpKind::Immediate32to64 => {
                        let v = self.r.value() as i32;
                        next.set_immediate_i64(n, i64::from(v));
                    }
                    _ => break,
                }
                if encode(&next, CODE).is_some() && self.harmless(&next) {
                    i = next;
                    break;
                }
            }
        }
        if has_memory(&i) && self.r.one_in(8) && lockable(&i) {
            let mut next = i;
            next.set_has_lock_prefix(true);
            if encode(&next, CODE).is_some() {
                i = next;
            }
        }
        i
    }

    /// Whether it leaves the pointers alone; now and then it need not.
    fn harmless(&mut self, i: &Instruction) -> bool {
        if self.r.one_in(40) {
            return true;
        }
        let info = self.info.info(i);
        !info.used_registers().iter().any(|u| {
            let writes = !matches!(
                u.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            let r = u.register();
            writes && r.is_gpr() && {
                let n = r.full_register().number();
                pointer(n).is_some() || n == INDEX || n == COUNTER
            }
        })
    }

    /// A target address for a data access of `size` bytes.
    fn address(&mut self, size: u64) -> u64 {
        let data_end = DATA + DATA_PAGES * PAGE;
        let align = |a: u64, r: &mut Rng| if r.one_in(3) { a } else { a & !31 };
        match self.r.below(80) {
            0 => READ_ONLY + self.r.below(PAGE),
            1 => UNMAPPED + self.r.below(PAGE),
            // Across two good pages.
            2..=8 => {
                DATA + PAGE * (1 + self.r.below(DATA_PAGES - 1)) - 1 - self.r.below(size.max(2) - 1)
            }
            // From good to bad ones.
            9 => {
                self.r.pick(&[data_end, UNMAPPED, ISLAND + PAGE])
                    - 1
                    - self.r.below(size.max(2) - 1)
            }
            10 => CODE + self.r.below(0x80),
            11 => ALIAS + self.r.below(0x80),
            12 => 0x8000_0000_0000 - self.r.below(16),
            13..=20 => STACK + self.r.below(STACK_PAGES * PAGE - 64),
            21..=24 => {
                let a = ISLAND + self.r.below(PAGE - 64);
                align(a, &mut self.r)
            }
            _ => {
                let a = DATA + 64 + self.r.below(DATA_PAGES * PAGE - 192);
                align(a, &mut self.r)
            }
        }
    }

    /// Points the memory operand of `i` at some address.
    fn place(&mut self, i: &mut Instruction) {
        let size = (i.memory_size().size() as u64).max(1);
        let target = self.address(size);
        let mut next = *i;
        next.set_memory_index(Register::None);
        next.set_memory_index_scale(1);
        next.set_segment_prefix(Register::None);
        let bases = [3u32, 5, 6, 7, 13, 14, 4];
        let base = self.r.pick(&bases);
        let start = pointer(base as usize).expect("a pointer");
        let disp = |x: u64| x as i64 as u64;
        match self.r.below(14) {
            0 => {
                next.set_memory_base(Register::RIP);
                next.set_memory_displacement64(target);
                next.set_memory_displ_size(8);
            }
            1 => {
                next.set_memory_base(Register::None);
                next.set_memory_displacement64(target);
                next.set_memory_displ_size(8);
            }
            2 => {
                // 32-bit address.
                next.set_memory_base(Register::EAX + base);
                next.set_memory_displacement64(target.wrapping_sub(start) & 0xffff_ffff);
                next.set_memory_displ_size(4);
            }
            3 => {
                next.set_segment_prefix(Register::FS);
                next.set_memory_base(Register::None);
                next.set_memory_displacement64(disp(target.wrapping_sub(FS_BASE)));
                next.set_memory_displ_size(8);
            }
            4 | 5 => {
                next.set_memory_base(Register::RAX + base);
                next.set_memory_index(Register::R12);
                next.set_memory_index_scale(1 << self.r.below(4));
                next.set_memory_displacement64(disp(target.wrapping_sub(start)));
                next.set_memory_displ_size(8);
            }
            6 if self.r.one_in(6) => {
                next.set_memory_base(Register::RAX + self.r.below(16) as u32);
                next.set_memory_displacement64(0);
                next.set_memory_displ_size(0);
            }
            _ => {
                next.set_memory_base(Register::RAX + base);
                next.set_memory_displacement64(disp(target.wrapping_sub(start)));
                next.set_memory_displ_size(8);
            }
        }
        // Absolute forms (MOV moffs, XLAT) keep what they have if this does not encode.
        if encode(&next, CODE).is_some() {
            *i = next;
        } else {
            let mut next = *i;
            next.set_memory_base(Register::RAX + base);
            next.set_memory_displacement64(0x20);
            next.set_memory_displ_size(1);
            if encode(&next, CODE).is_some() {
                *i = next;
            }
        }
    }

    /// LDMXCSR of one of the values that the data page begins with.
    pub fn ldmxcsr(&mut self) -> Instruction {
        let at = DATA + 4 * self.r.below(MXCSRS.len() as u64);
        let m = MemoryOperand::with_displ(at, 8);
        Instruction::with1(Code::Ldmxcsr_m32, m).expect("LDMXCSR")
    }
}

fn lockable(i: &Instruction) -> bool {
    table::row(i.code()).route == Route::Sem
}

/// A listing of code.
pub fn listing(code: &[u8]) -> String {
    use iced_x86::{Formatter, IntelFormatter};
    let mut f = IntelFormatter::new();
    f.options_mut().set_rip_relative_addresses(true);
    let mut out = String::new();
    let mut filler = false;
    for i in Decoder::with_ip(64, code, CODE, DecoderOptions::NONE) {
        // What fills a page up is shown by its first byte only.
        let fills = i.code() == Code::Int3;
        if std::mem::replace(&mut filler, fills) && fills {
            continue;
        }
        let mut text = String::new();
        f.format(&i, &mut text);
        let at = (i.ip() - CODE) as usize;
        let bytes: String = code[at..at + i.len()]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        out += &format!("  {:6x}  {bytes:24}  {text}\n", i.ip());
    }
    out
}

/// The code that `build` makes, at [`CODE`].
pub fn assemble(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble_at(CODE, build)
}

/// The code that `build` makes, at an address.
pub fn assemble_at(
    at: u64,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 bits");
    build(&mut a).expect("an encodable program");
    a.assemble(at).expect("an encodable program")
}

/// A loop in one page that calls a function in the next; the function is at `CODE + PAGE`.
pub fn calling(value: u32) -> Vec<u8> {
    let mut code = assemble(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?;
        a.mov(r15d, 100)?;
        a.set_label(&mut top)?;
        a.call(CODE + PAGE)?;
        a.dec(r15d)?;
        a.jne(top)?;
        a.cpuid()
    });
    code.resize(PAGE as usize, 0xcc);
    code.extend([0x05]); // ADD EAX, imm32
    code.extend(value.to_le_bytes());
    code.push(0xc3);
    code
}
