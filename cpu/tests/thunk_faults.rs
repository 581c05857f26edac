//! Native thunks: what a fault leaves behind, refused forms, x87 pointers, addresses of gathers and masked moves.

use sevlab_arch::Va;
use sevlab_cpu::insn::{Control, Rep};
use sevlab_cpu::state::{Lane, seg};
use sevlab_cpu::thunk::{self, ThunkCache, ThunkError, ThunkMemory, x87::Pointers};
use sevlab_cpu::{CpuState, Exception, Insn, MemRef, Op, Operand, Stop, Width};

const RIP: u64 = 0x55_5555_1234;
/// One page that can be read and written, then one that can be read, then nothing.
const BASE: u64 = 0x10_0000;

struct Memory {
    bytes: Vec<u8>,
    log: Vec<(char, u64, usize)>,
}

impl Memory {
    fn new() -> Self {
        Self {
            bytes: (0..0x2000u32)
                .map(|n| ((n / 4 * 0x01_01_03) >> (n % 4 * 8)) as u8)
                .collect(),
            log: Vec::new(),
        }
    }
    fn check(&mut self, kind: char, va: u64, len: usize) -> Result<usize, Stop> {
        self.log.push((kind, va, len));
        let limit = BASE + if kind == 'r' { 0x2000 } else { 0x1000 };
        let bad = (0..len as u64)
            .map(|n| va.wrapping_add(n))
            .find(|a| !(BASE..limit).contains(a));
        match bad {
            None => Ok((va - BASE) as usize),
            Some(a) => Err(Exception::page_fault(Va(a), if kind == 'r' { 4 } else { 6 }).into()),
        }
    }
}

impl ThunkMemory for Memory {
    fn read(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        let at = self.check('r', va, out.len())?;
        out.copy_from_slice(&self.bytes[at..at + out.len()]);
        Ok(())
    }
    fn write(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        let at = self.check('w', va, data.len())?;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn probe_write(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        self.check('p', va, len).map(|_| ())
    }
}

fn insn(bytes: &[u8]) -> Insn {
    let mut b = [0; 15];
    b[..bytes.len()].copy_from_slice(bytes);
    Insn {
        rip: RIP,
        op: Op::Thunk,
        len: bytes.len() as u8,
        width: Width::B8,
        src_width: Width::B8,
        lock: false,
        rep: Rep::None,
        control: Control::Next,
        ops: [Operand::None; 4],
        mem: MemRef::ABSENT,
        code: 0,
        flags_in: 0,
        flags_out: 0,
        bytes: b,
    }
}

struct Machine {
    state: Box<CpuState>,
    mem: Memory,
    cache: ThunkCache,
}

impl Machine {
    fn new() -> Self {
        Self {
            state: CpuState::process(),
            mem: Memory::new(),
            cache: ThunkCache::new().expect("executable memory"),
        }
    }
    fn run(&mut self, bytes: &[u8], va: u64) -> Result<(), Stop> {
        let i = insn(bytes);
        let t = self.cache.get(&i).expect("a thunk");
        thunk::run(t, &mut self.state, &mut self.mem, &i, va)
    }
}

fn fault(va: u64, error: u32) -> Result<(), Stop> {
    Err(Exception::page_fault(Va(va), error).into())
}

#[test]
fn a_faulting_store_changes_no_register() {
    let mut m = Machine::new();
    m.run(&[0xd9, 0xe8], 0).expect("fld1");
    let before = m.state.fx.0;
    // fstp qword [rax], into the read-only page
    assert_eq!(m.run(&[0xdd, 0x18], BASE + 0xffc), fault(BASE + 0x1000, 6));
    assert_eq!(m.state.fx.0, before);
    // vcvtps2ph qword [rax], xmm1, 0 sets MXCSR flags
    m.state.xmm[1] = Lane([0x7fa0_0001_7fa0_0001; 2]);
    let flags = thunk::mxcsr::live(&m.state) & thunk::mxcsr::FLAGS;
    assert_eq!(
        m.run(&[0xc4, 0xe3, 0x79, 0x1d, 0x08, 0x00], BASE + 0x1000),
        fault(BASE + 0x1000, 6)
    );
    assert_eq!(thunk::mxcsr::live(&m.state) & thunk::mxcsr::FLAGS, flags);
}

#[test]
fn x87_pointers_name_guest_addresses() {
    let mut m = Machine::new();
    // fld qword [rax]
    m.run(&[0xdd, 0x00], BASE + 8).expect("fld");
    let loaded = Pointers {
        opcode: 0x500,
        instruction: RIP,
        data: BASE + 8,
    };
    assert_eq!(m.state.fx.pointers(), loaded);
    // fnstcw [rax] and an MMX instruction leave them
    m.run(&[0xd9, 0x38], BASE).expect("fnstcw");
    m.run(&[0x0f, 0xfc, 0xc1], 0).expect("paddb mm0, mm1");
    assert_eq!(m.state.fx.pointers(), loaded);
    // fnstenv [rax]: 28 bytes
    m.run(&[0xd9, 0x30], BASE).expect("fnstenv");
    assert_eq!(m.mem.bytes[12..16], (RIP as u32).to_le_bytes());
    assert_eq!(m.mem.bytes[20..24], (BASE as u32 + 8).to_le_bytes());
    // and with 66, 14 bytes
    m.run(&[0x66, 0xd9, 0x30], BASE).expect("fnstenv");
    assert_eq!(m.mem.bytes[6..8], (RIP as u16).to_le_bytes());
    // fninit
    m.run(&[0xdb, 0xe3], 0).expect("fninit");
    assert_eq!(m.state.fx.pointers(), Pointers::default());
}

#[test]
fn x87_exceptions_are_raised_by_the_next_waiting_instruction() {
    let mut m = Machine::new();
    m.mem.bytes[0..2].copy_from_slice(&0x37bu16.to_le_bytes());
    m.run(&[0xd9, 0x28], BASE).expect("fldcw, ZE unmasked");
    m.run(&[0xd9, 0xe8], 0).expect("fld1");
    m.run(&[0xd9, 0xee], 0).expect("fldz");
    m.run(&[0xde, 0xf9], 0).expect("fdivp raises ZE, silently");
    assert!(m.state.fx.pending());
    let mf: Result<(), Stop> = Err(Exception::X87.into());
    assert_eq!(m.run(&[0x9b], 0), mf, "fwait");
    assert_eq!(m.run(&[0xd9, 0xe8], 0), mf, "fld1");
    assert_eq!(m.run(&[0x0f, 0xfc, 0xc1], 0), mf, "paddb");
    m.run(&[0xdf, 0xe0], 0).expect("fnstsw ax does not wait");
    assert_eq!(m.state.gpr[0] & 0x8084, 0x8084);
    m.run(&[0xdb, 0xe2], 0).expect("fnclex");
    m.run(&[0x9b], 0).expect("fwait");
}

#[test]
fn a_gather_keeps_what_it_loaded_before_a_fault() {
    let mut m = Machine::new();
    // vpgatherdd ymm1, [rax + ymm2*4], ymm3
    let gather = [0xc4, 0xe2, 0x65, 0x90, 0x0c, 0x90];
    m.state.gpr[0] = BASE + 0x1f00;
    let index = |a: u32, b: u32| u64::from(a) | u64::from(b) << 32;
    m.state.xmm[2] = Lane([index(0, 1), index(0xffff_ffff, 0x1000)]);
    m.state.ymmh[2] = Lane([index(2, 3), index(4, 5)]);
    m.state.xmm[3] = Lane([index(0x8000_0000, 0), index(0x8000_0000, 0x8000_0000)]);
    m.state.ymmh[3] = Lane([!0; 2]);
    m.state.xmm[1] = Lane([0x1111_1111_1111_1111; 2]);
    assert_eq!(m.run(&gather, 0), fault(BASE + 0x1f00 + 0x4000, 4));
    let word =
        |at: usize| u32::from_le_bytes(m.mem.bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(
        m.state.xmm[1].0,
        [
            index(word(0x1f00), 0x1111_1111),
            index(word(0x1efc), 0x1111_1111)
        ]
    );
    // The mask that is left is all ones or zeros in each element, as the host leaves it.
    assert_eq!(m.state.xmm[3].0, [0, index(0, u32::MAX)]);
    assert_eq!(m.state.ymmh[3].0, [!0; 2]);
    // Once the page is there, it goes on with the rest.
    m.state.xmm[2].0[1] = 0;
    m.mem.log.clear();
    m.run(&gather, 0).expect("no fault");
    assert_eq!(m.mem.log.len(), 5);
    assert_eq!(m.state.xmm[3].0, [0; 2]);
    assert_eq!(m.state.ymmh[3].0, [0; 2]);
}

#[test]
fn gather_addresses_wrap_and_use_segments() {
    let mut m = Machine::new();
    m.state.seg[seg::FS].base = BASE;
    m.state.gpr[0] = 0xffff_ffff_0000_0010;
    m.state.xmm[3] = Lane([!0; 2]);
    // vpgatherqq xmm1, fs:[eax + xmm2*8], xmm3: 32-bit offset
    m.run(&[0x64, 0x67, 0xc4, 0xe2, 0xe1, 0x91, 0x0c, 0xd0], 0)
        .expect("gather");
    assert_eq!(m.mem.log, [('r', BASE + 0x10, 8), ('r', BASE + 0x10, 8)]);
}

#[test]
fn masked_moves_touch_only_their_elements() {
    let mut m = Machine::new();
    let on = 0x8000_0000_0000_0000u64;
    m.state.xmm[2] = Lane([on, 0]);
    m.state.ymmh[2] = Lane([0, 0]);
    // vmaskmovpd ymm1, ymm2, [rax]: the rest of the operand is unmapped
    m.run(&[0xc4, 0xe2, 0x6d, 0x2d, 0x08], BASE + 0x1ff8)
        .expect("load");
    assert_eq!(m.mem.log, [('r', BASE + 0x1ff8, 8)]);
    assert_eq!(m.state.ymmh[1].0, [0; 2]);
    // vmaskmovpd [rax], ymm2, ymm1: all or nothing
    m.state.ymmh[2] = Lane([on, 0]);
    m.mem.log.clear();
    assert_eq!(
        m.run(&[0xc4, 0xe2, 0x6d, 0x2f, 0x08], BASE + 0xff0),
        fault(BASE + 0x1000, 6)
    );
    assert!(m.mem.log.iter().all(|l| l.0 == 'p'));
    // No element: no access.
    m.state.xmm[2] = Lane::default();
    m.state.ymmh[2] = Lane::default();
    m.run(&[0xc4, 0xe2, 0x6d, 0x2f, 0x08], 0)
        .expect("nothing to store");
    // maskmovdqu xmm1, xmm2 through RDI
    m.state.xmm[2] = Lane([0x8000, 0]);
    m.state.gpr[7] = BASE;
    m.mem.log.clear();
    m.run(&[0x66, 0x0f, 0xf7, 0xca], 0).expect("store");
    // All of it must be writable, as on the host.
    assert_eq!(
        m.mem.log,
        [('p', BASE, 16), ('p', BASE + 1, 1), ('w', BASE + 1, 1)]
    );
}

#[test]
fn simd_exceptions_restore_the_destination() {
    let mut m = Machine::new();
    m.mem.bytes[0..4].copy_from_slice(&0x1d80u32.to_le_bytes());
    m.run(&[0x0f, 0xae, 0x10], BASE)
        .expect("ldmxcsr, ZE unmasked");
    m.state.xmm[0] = Lane([1f64.to_bits(), 7]);
    // divsd xmm0, xmm1 (zero)
    assert_eq!(
        m.run(&[0xf2, 0x0f, 0x5e, 0xc1], 0),
        Err(Exception::SIMD.into())
    );
    assert_eq!(m.state.xmm[0].0, [1f64.to_bits(), 7]);
    // stmxcsr shows the guest's masks and the flag
    m.run(&[0x0f, 0xae, 0x18], BASE).expect("stmxcsr");
    assert_eq!(m.mem.bytes[0..4], 0x1d84u32.to_le_bytes());
    // reserved bits
    m.mem.bytes[2] = 1;
    assert_eq!(
        m.run(&[0x0f, 0xae, 0x10], BASE),
        Err(Exception::GENERAL_PROTECTION.into())
    );
    thunk::mxcsr::load(&mut m.state, 0x1f80);
}

#[test]
fn encodings_differ_in_addresses_only_share_a_thunk() {
    let mut c = ThunkCache::new().expect("executable memory");
    let mut get = |b: &[u8]| std::ptr::from_ref(c.get(&insn(b)).expect("a thunk"));
    let a = get(&[0x66, 0x0f, 0xfe, 0x00]); // paddd xmm0, [rax]
    assert_eq!(a, get(&[0x66, 0x0f, 0xfe, 0x44, 0x8b, 0x40])); // [rbx + rcx*4 + 0x40]
    assert_eq!(a, get(&[0x66, 0x0f, 0xfe, 0x05, 1, 2, 3, 4])); // [rip + ...]
    assert_eq!(a, get(&[0x64, 0x66, 0x0f, 0xfe, 0x04, 0x25, 1, 2, 3, 4])); // fs:[...]
    assert_ne!(a, get(&[0x66, 0x0f, 0xfe, 0x08])); // xmm1
    assert_ne!(a, get(&[0x66, 0x0f, 0xfe, 0xc0])); // xmm0, xmm0
    // RSP is replaced by another register, yet is not that register.
    let to = |n: u8| [0x66, 0x48, 0x0f, 0x7e, 0xc0 | n];
    let all: Vec<_> = (0..8).map(|n| get(&to(n))).collect();
    for n in 0..8 {
        assert!(!all[..n].contains(&all[n]));
    }
}

#[test]
fn stray_and_refused_forms() {
    let mut m = Machine::new();
    // A REX.W, a segment and a branch hint that mean nothing on fld1.
    m.run(&[0x2e, 0x3e, 0x48, 0xd9, 0xe8], 0).expect("fld1");
    let mut get = |b: &[u8]| m.cache.get(&insn(b)).map(|t| t.kind());
    assert!(matches!(
        get(&[0xf0, 0x0f, 0x58, 0xc1]),
        Err(ThunkError::Undecodable)
    ));
    assert!(matches!(get(&[0x0f, 0x58]), Err(ThunkError::Undecodable)));
    assert!(matches!(get(&[]), Err(ThunkError::Undecodable)));
    assert!(matches!(get(&[0x90]), Err(ThunkError::Unsupported { .. })));
    assert!(matches!(get(&[0xf4]), Err(ThunkError::Unsupported { .. })));
    assert!(matches!(
        get(&[0x0f, 0xae, 0x00]),
        Err(ThunkError::Unsupported { .. })
    )); // fxsave
    assert!(matches!(get(&[0xc3]), Err(ThunkError::Unsupported { .. })));
    // vgatherdps with one register twice is no instruction
    assert!(get(&[0xc4, 0xe2, 0x65, 0x92, 0x1c, 0x90]).is_err());
}

#[test]
fn random_bytes_never_harm_the_host() {
    let mut m = Machine::new();
    let mut x = 1u64;
    let mut made = 0;
    for _ in 0..400_000 {
        let mut b = [0; 15];
        for c in b.chunks_mut(8) {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            c.copy_from_slice(&(x ^ x >> 29).to_le_bytes()[..c.len()]);
        }
        match x >> 60 {
            0..4 => b[0] = 0x0f,
            4..8 => b[0] = 0xd8 | b[0] & 7,
            8..12 => (b[0], b[1]) = (0xc4, 0xe1 + b[1] % 3),
            _ => {}
        }
        for len in 1..=15 {
            let mut i = insn(&b[..len]);
            i.code = 0;
            if let Ok(t) = m.cache.get(&i) {
                made += 1;
                // Whatever it does, it returns.
                let _ = thunk::run(t, &mut m.state, &mut m.mem, &i, BASE + 0x400);
                m.mem.log.clear();
            }
        }
    }
    thunk::mxcsr::load(&mut m.state, 0x1f80);
    assert!(made > 50_000, "{made}");
}

#[test]
#[ignore = "prints times"]
fn times() {
    let mut m = Machine::new();
    let cases: [(&str, &[u8]); 7] = [
        ("paddd xmm0, xmm1", &[0x66, 0x0f, 0xfe, 0xc1]),
        ("paddd xmm0, [rax]", &[0x66, 0x0f, 0xfe, 0x00]),
        ("vpaddd ymm0, ymm1, ymm2", &[0xc5, 0xf5, 0xfe, 0xc2]),
        ("vaesenc xmm0, xmm1, xmm2", &[0xc4, 0xe2, 0x71, 0xdc, 0xc2]),
        ("ptest xmm0, xmm1", &[0x66, 0x0f, 0x38, 0x17, 0xc1]),
        ("crc32 rax, rcx", &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1]),
        ("fadd st0, st1", &[0xd8, 0xc1]),
    ];
    for (name, bytes) in cases {
        let i = insn(bytes);
        let start = std::time::Instant::now();
        let t = m.cache.get(&i).expect("a thunk");
        let make = start.elapsed();
        m.state.fx.reset_x87();
        m.state.fx.0[4] = 0xff;
        let n = 5_000_000;
        let start = std::time::Instant::now();
        for _ in 0..n {
            m.mem.log.clear();
            thunk::run(t, &mut m.state, &mut m.mem, &i, BASE).expect("no fault");
        }
        let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(n);
        println!("{name}: {each:.1} ns each, made in {make:?}");
    }
}
