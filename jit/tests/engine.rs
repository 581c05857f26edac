//! What random programs seldom do: flags over long ways, faults in the middle of regions, interruption, chains that
//! are cut, mappings that change, buffers that fill.

#[path = "diff/compare.rs"]
mod compare;
#[path = "diff/forms.rs"]
mod forms;
#[path = "diff/machine.rs"]
mod machine;
#[path = "diff/program.rs"]
mod program;

use compare::{Rig, Verdict, engines, report};
use iced_x86::code_asm::*;
use machine::{
    CODE, DATA, ISLAND, Kind, Machine, Outcome, PAGE, READ_ONLY, STACK, Start, UNMAPPED, WIDE,
    WIDE_PAGES,
};
use program::{assemble, calling};
use sevlab_arch::Va;
use sevlab_cpu::stop::{InterceptKind, Stop};
use sevlab_jit::JitOptions;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs the code from several states in every engine and in the interpreter.
fn agree(kind: Kind, code: &[u8]) {
    agree_in(kind, code, false);
}

/// The same; `undefined`: of a program that sees flags that instructions leave undefined.
fn agree_in(kind: Kind, code: &[u8], undefined: bool) {
    let mut rig = Rig::new(kind, 0);
    for seed in 0..6 {
        let start = Start {
            undefined,
            ..Start::new(seed, code)
        };
        match rig.check(&start) {
            Verdict::Agree => {}
            Verdict::Endless => panic!("endless"),
            Verdict::Differ(d) => panic!("{}", report(&start, kind, &d)),
        }
    }
}

/// Runs the code in a translating engine until it is translated, and once more.
fn translated(options: JitOptions, start: &Start) -> (Machine, Outcome) {
    let mut m = Machine::new(Kind::Plain, Some(options));
    for _ in 0..5 {
        m.reset(start);
        m.run().expect("engines have no budget");
    }
    let entries = m.engine.as_ref().expect("made with one").stats().entries;
    m.reset(start);
    let out = m.run().expect("engines have no budget");
    let after = m.engine.as_ref().expect("made with one").stats();
    assert!(
        after.entries > entries || after.direct > 0,
        "nothing ran translated"
    );
    (m, out)
}

fn foreground() -> JitOptions {
    JitOptions {
        threshold: 2,
        background: false,
        code_bytes: 4 << 20,
        ..JitOptions::default()
    }
}

/// The shared word by which another thread interrupts the vCPU.
struct Request(*const AtomicU32);
#[allow(unsafe_code)] // another thread's view of a running vCPU
// SAFETY: an atomic in a boxed vCPU that outlives the threads here.
unsafe impl Send for Request {}

impl Request {
    fn of(m: &Machine) -> Self {
        Self(&raw const m.vcpu.state.exit_request)
    }
    #[allow(unsafe_code)] // as above
    fn raise(&self) {
        // SAFETY: see the `Send` implementation.
        unsafe { (*self.0).store(1, Ordering::Release) };
    }
}

#[test]
fn flags_over_many_blocks() {
    let code = assemble(|a| {
        let (mut l1, mut l2, mut l3) = (a.create_label(), a.create_label(), a.create_label());
        let (mut l4, mut l5) = (a.create_label(), a.create_label());
        a.mov(ecx, 40)?;
        a.set_label(&mut l1)?;
        // One comparison, read by a chain of blocks.
        a.cmp(rax, rdx)?;
        a.je(l2)?;
        a.jl(l3)?;
        a.jb(l3)?;
        a.setp(r8b)?;
        a.jmp(l2)?;
        a.set_label(&mut l3)?;
        a.adc(r9, r10)?;
        a.sets(r11b)?;
        a.set_label(&mut l2)?;
        // Not written on one of the ways here.
        a.jo(l4)?;
        a.inc(rdx)?;
        a.jne(l4)?;
        a.sbb(r10, 3)?;
        a.set_label(&mut l4)?;
        // CF is that of whichever came before INC.
        a.rcl(rax, 1)?;
        a.lea(rcx, ptr(rcx - 1))?;
        a.jrcxz(l5)?;
        a.jmp(l1)?;
        a.set_label(&mut l5)?;
        a.pushfq()?;
        a.cpuid()
    });
    agree(Kind::Plain, &code);
}

#[test]
fn carry_survives_inc_and_dec_over_blocks() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        // A long addition: ADC's carry goes round the loop past DEC and LEA.
        a.mov(ecx, 30)?;
        a.lea(rsi, ptr(rbx))?;
        a.lea(rdi, ptr(rbp))?;
        a.clc()?;
        a.set_label(&mut top)?;
        a.mov(rax, ptr(rsi))?;
        a.adc(ptr(rdi), rax)?;
        a.lea(rsi, ptr(rsi + 8))?;
        a.lea(rdi, ptr(rdi + 8))?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.setb(r8b)?;
        a.cpuid()
    });
    agree(Kind::Plain, &code);
    agree(Kind::Uncached, &code);
}

#[test]
fn zero_counts_keep_flags_over_blocks() {
    for count in [0u32, 32, 64, 1, 33] {
        let code = assemble(|a| {
            let (mut over, mut top) = (a.create_label(), a.create_label());
            a.mov(r15d, 3)?;
            a.set_label(&mut top)?;
            a.add(rax, rdx)?;
            a.mov(ecx, count)?;
            a.jno(over)?;
            a.sub(r8, r9)?;
            a.set_label(&mut over)?;
            a.shl(r10d, cl)?;
            a.setb(r11b)?;
            a.sar(r10, cl)?;
            a.setp(r12b)?;
            a.rol(dx, cl)?;
            a.rcr(r9b, cl)?;
            a.shld(r8, rdx, cl)?;
            a.seto(r13b)?;
            a.dec(r15d)?;
            a.jne(top)?;
            a.cpuid()
        });
        agree_in(Kind::Plain, &code, count & 63 > 1);
    }
}

#[test]
fn faults_are_precise_in_the_middle_of_a_region() {
    // Registers, a vector register and flags change; then the n-th access of a loop faults.
    let faulting: [(u64, Emit); 6] = [
        (UNMAPPED - 0x60, |a| a.mov(rax, qword_ptr(rsi))),
        (READ_ONLY - 0x63, |a| a.add(qword_ptr(rsi), r8)),
        (READ_ONLY - 0x50, |a| a.mov(qword_ptr(rsi), r8)),
        (READ_ONLY - 0x51, |a| a.adc(dword_ptr(rsi), 5)),
        (READ_ONLY - 0x60, |a| a.movups(xmmword_ptr(rsi), xmm3)),
        (UNMAPPED - 0x40, |a| a.vpaddd(ymm2, ymm3, ymmword_ptr(rsi))),
    ];
    for (at, access) in faulting {
        let code = assemble(|a| {
            let mut top = a.create_label();
            a.mov(esi, at as u32)?;
            a.mov(ecx, 50)?;
            a.set_label(&mut top)?;
            a.add(r8, r9)?;
            a.paddd(xmm3, xmm4)?;
            a.mov(r10b, cl)?;
            a.sub(r11d, ecx)?;
            access(a)?;
            a.lea(rsi, ptr(rsi + 8))?;
            a.inc(rdx)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.cpuid()
        });
        agree(Kind::Plain, &code);
        let (_, out) = translated(foreground(), &Start::new(1, &code));
        match out.stop {
            Stop::Exception(e) => assert_eq!(e.vector, 14),
            other => panic!("{other:?}"),
        }
        assert!(
            out.rip > CODE && out.gpr[1] < 50 && out.gpr[1] > 30,
            "in the loop"
        );
    }
}

#[test]
fn divide_errors_are_precise() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 20)?;
        a.set_label(&mut top)?;
        a.mov(rax, r9)?;
        a.xor(edx, edx)?;
        a.sub(r10, 1)?;
        a.div(rcx)?;
        a.add(r11, rdx)?;
        a.dec(rcx)?;
        a.jmp(top)
    });
    agree(Kind::Plain, &code);
    let (_, out) = translated(foreground(), &Start::new(2, &code));
    assert!(matches!(out.stop, Stop::Exception(e) if e.vector == 0));
    assert_eq!((out.gpr[1], out.gpr[2]), (0, 0));
}

#[test]
fn a_long_loop_is_interrupted_and_goes_on() {
    for options in engines(0).map(|e| e.1) {
        const TURNS: u64 = 20_000_000;
        let code = assemble(|a| {
            let mut top = a.create_label();
            a.xor(eax, eax)?;
            a.mov(ecx, TURNS as u32)?;
            a.set_label(&mut top)?;
            a.lea(rax, ptr(rax + rcx))?;
            a.sub(ecx, 1)?;
            a.jne(top)?;
            a.cpuid()
        });
        let mut m = Machine::new(Kind::Plain, Some(options));
        m.reset(&Start::new(0, &code));
        let request = Request::of(&m);
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let request = request;
            while !seen.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(200));
                request.raise();
            }
        });
        let mut interruptions = 0;
        let out = loop {
            let out = m.run().expect("engines have no budget");
            if out.stop != Stop::Requested {
                break out;
            }
            interruptions += 1;
            // The sum and the counter fit each other wherever it stopped between two turns.
            let left = out.gpr[1];
            if out.rip == CODE + 7 {
                assert_eq!(out.gpr[0], (TURNS - left) * (TURNS + left + 1) / 2);
            }
            assert!(out.retired <= 3 * TURNS + 2);
        };
        done.store(true, Ordering::Relaxed);
        thread.join().expect("it only stores");
        assert_eq!(out.gpr[0], TURNS * (TURNS + 1) / 2);
        assert_eq!(out.retired, 3 * TURNS + 2);
        assert!(interruptions > 0, "it ran too fast to be interrupted");
    }
}

#[test]
fn loops_without_memory_accesses_are_interrupted() {
    for options in engines(0).map(|e| e.1) {
        let code = assemble(|a| {
            let (mut one, mut two) = (a.create_label(), a.create_label());
            a.mov(eax, 1)?;
            a.set_label(&mut one)?;
            a.test(eax, eax)?;
            a.je(two)?;
            a.jmp(one)?;
            a.set_label(&mut two)?;
            a.jmp(two)
        });
        let mut m = Machine::new(Kind::Plain, Some(options));
        m.reset(&Start::new(0, &code));
        let request = Request::of(&m);
        let started = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            request.raise();
        });
        let out = m.run().expect("engines have no budget");
        thread.join().expect("it only stores");
        assert_eq!(out.stop, Stop::Requested);
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}

#[test]
fn chains_are_cut_when_code_changes() {
    for (_, options) in engines(0) {
        let start = Start::new(0, &calling(3));
        let (mut m, out) = translated(options, &start);
        assert_eq!(out.gpr[0], 300);
        for value in [5u32, 7, 11] {
            // The function alone changes, under the loop's feet.
            m.poke(CODE + PAGE + 1, &value.to_le_bytes());
            let start = Start::new(0, &calling(value));
            for _ in 0..4 {
                m.reset(&start);
                assert_eq!(m.run().expect("no budget").gpr[0], 100 * u64::from(value));
            }
        }
        let stats = m.engine.as_ref().expect("made with one").stats();
        assert!(stats.dropped >= 3 || stats.direct >= 3, "{stats:?}");
    }
}

#[test]
fn a_region_that_changes_itself_goes_on_with_the_new_code() {
    // The store hits the instruction right behind it, on its own page, in a hot loop.
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?;
        a.mov(r15d, 40)?;
        a.set_label(&mut top)?;
        a.mov(byte_ptr(CODE + 0x11), r15b)?;
        a.add(eax, 0x0102_0304)?;
        a.dec(r15d)?;
        a.jne(top)?;
        a.cpuid()
    });
    assert_eq!(
        code[0x10], 0x05,
        "ADD EAX, imm32 is where the store expects it"
    );
    agree(Kind::Plain, &code);
    agree(Kind::Private, &code);
}

#[test]
fn a_remapped_page_runs_its_new_code() {
    for (_, options) in engines(0) {
        let start = Start::new(0, &calling(3));
        let (mut m, out) = translated(options, &start);
        assert_eq!(out.gpr[0], 300);
        // The function's address is mapped to a data page with another function.
        let mut other = vec![0x05];
        other.extend(9u32.to_le_bytes());
        other.push(0xc3);
        m.reset(&start);
        m.poke(ISLAND, &other);
        m.remap(CODE + PAGE, ISLAND, 7);
        assert_eq!(m.run().expect("no budget").gpr[0], 900);
        m.vcpu.state.rip = CODE;
        assert_eq!(m.run().expect("no budget").gpr[0], 900);
        // Not mapped at all, then back.
        m.remap(CODE + PAGE, 0, 0);
        m.vcpu.state.rip = CODE;
        let out = m.run().expect("no budget");
        assert!(matches!(out.stop, Stop::Exception(e) if e.cr2 == Some(Va(CODE + PAGE))));
        assert_eq!(out.rip, CODE + PAGE);
        m.remap(CODE + PAGE, CODE + PAGE, 5);
        assert_eq!(m.run().expect("no budget").gpr[0], 300);
    }
}

#[test]
fn a_page_that_becomes_read_only_faults_in_translated_code() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 60)?;
        a.set_label(&mut top)?;
        a.mov(qword_ptr(rbx), rcx)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.cpuid()
    });
    let start = Start::new(0, &code);
    let (mut m, out) = translated(foreground(), &start);
    assert!(matches!(out.stop, Stop::Intercept(i) if i.kind == InterceptKind::Cpuid));
    m.reset(&start);
    m.remap(DATA, DATA, 5);
    let out = m.run().expect("no budget");
    assert!(
        matches!(out.stop, Stop::Exception(e) if e.cr2 == Some(Va(DATA + 0x800)) && e.error == Some(7))
    );
    assert_eq!(out.gpr[1], 60);
}

#[test]
fn a_full_buffer_starts_anew() {
    // Many small functions, called in turn, do not fit.
    let code = assemble(|a| {
        let mut top = a.create_label();
        let mut functions: Vec<_> = (0..150).map(|_| a.create_label()).collect();
        a.xor(eax, eax)?;
        a.mov(r15d, 30)?;
        a.set_label(&mut top)?;
        for &f in &functions {
            a.call(f)?;
        }
        a.dec(r15d)?;
        a.jne(top)?;
        a.cpuid()?;
        for (n, f) in functions.iter_mut().enumerate() {
            a.set_label(f)?;
            a.add(rax, n as i32)?;
            a.mov(qword_ptr(rbx + 8 * n as u64), rax)?;
            a.ret()?;
        }
        Ok(())
    });
    let start = Start::new(0, &code);
    let mut reference = Machine::new(Kind::Plain, None);
    reference.reset(&start);
    let expected = reference.run().expect("it ends");
    for background in [false, true] {
        let mut m = Machine::new(
            Kind::Plain,
            Some(JitOptions {
                code_bytes: 32 << 10,
                background,
                ..foreground()
            }),
        );
        let flushes = |m: &Machine| m.engine.as_ref().expect("made with one").stats().flushes;
        // How soon the compile thread gets there depends on what else the host does.
        let last = Instant::now() + Duration::from_secs(120);
        let mut runs = 0;
        while runs < 20 || flushes(&m) == 0 && Instant::now() < last {
            runs += 1;
            m.reset(&start);
            let out = m.run().expect("no budget");
            assert!(out == expected, "{:x?} {:?}", out.gpr, out.stop);
            if background {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(flushes(&m) > 0, "{runs} runs");
    }
}

#[test]
fn the_background_thread_delivers() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 20_000_000)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.cpuid()
    });
    let options = JitOptions {
        direct: 0,
        ..JitOptions::default()
    };
    let mut m = Machine::new(Kind::Plain, Some(options));
    m.reset(&Start::new(0, &code));
    let out = m.run().expect("no budget");
    assert_eq!(out.gpr[0], 10_000_000 * 20_000_001);
    assert_eq!(out.retired, 2 + 4 * 20_000_000);
    let stats = m.engine.as_ref().expect("made with one").stats();
    assert!(
        stats.regions > 0 && stats.interpreted < 40_000_000,
        "{stats:?}"
    );
}

#[test]
fn what_cannot_be_fetched_is_left_to_the_interpreter() {
    let code = assemble(|a| {
        a.mov(eax, UNMAPPED as u32)?;
        a.jmp(rax)
    });
    agree(Kind::Plain, &code);
    let mut m = Machine::new(Kind::Plain, Some(foreground()));
    let start = Start::new(0, &code);
    for _ in 0..10 {
        m.reset(&start);
        let out = m.run().expect("no budget");
        assert!(matches!(out.stop, Stop::Exception(e) if e.cr2 == Some(Va(UNMAPPED))));
    }
    // A page that comes later runs, and is translated.
    m.reset(&start);
    m.poke(ISLAND, &[0xff, 0xc1, 0x0f, 0xa2]); // INC ECX; CPUID
    m.remap(UNMAPPED, ISLAND, 5);
    for n in 0..5 {
        m.vcpu.state.rip = CODE;
        m.vcpu.state.gpr[1] = n;
        assert_eq!(m.run().expect("no budget").gpr[1], n + 1);
    }
}

#[test]
fn addresses_that_no_code_has() {
    // Also the one whose bits are all set.
    for target in [u64::MAX, 0, 1 << 47, u64::MAX << 47, u64::MAX - 4095] {
        let code = assemble(|a| {
            a.mov(rax, target)?;
            a.jmp(rax)
        });
        agree(Kind::Plain, &code);
        let code = assemble(|a| {
            a.mov(rax, target)?;
            a.push(rax)?;
            a.ret()
        });
        agree(Kind::Plain, &code);
    }
}

#[test]
fn pages_are_pushed_out_under_a_running_region() {
    // Each turn goes through more pages than may be decrypted at a time, writing and reading back.
    let code = assemble(|a| {
        let (mut turn, mut page) = (a.create_label(), a.create_label());
        a.mov(r15d, 6)?;
        a.set_label(&mut turn)?;
        a.mov(esi, WIDE as u32)?;
        a.mov(ecx, WIDE_PAGES as u32)?;
        a.set_label(&mut page)?;
        a.add(rax, qword_ptr(rsi))?;
        a.add(qword_ptr(rsi), rcx)?;
        a.mov(qword_ptr(rsi + 0x800), rax)?;
        a.xor(rax, qword_ptr(rbx))?;
        a.lock().inc(qword_ptr(rbx))?;
        a.movups(xmm1, xmmword_ptr(rsi + 0x7f8))?;
        a.paddd(xmm2, xmm1)?;
        a.movups(xmmword_ptr(rsi + 0xfec), xmm2)?;
        a.add(rsi, 0x1000)?;
        a.dec(ecx)?;
        a.jne(page)?;
        a.dec(r15d)?;
        a.jne(turn)?;
        a.cpuid()
    });
    let mut rig = Rig::new(Kind::Scarce, 0);
    for seed in 0..4 {
        let start = Start::new(seed, &code);
        match rig.check_with(&start, |m| {
            m.poke(WIDE, &vec![7; (WIDE_PAGES * PAGE) as usize]);
        }) {
            Verdict::Agree => {}
            Verdict::Endless => panic!("endless"),
            Verdict::Differ(d) => panic!("{}", report(&start, Kind::Scarce, &d)),
        }
    }
}

#[test]
fn accesses_off_one_base_lie_in_two_pages() {
    // In one page at first, in two soon, then with what is read only or not there in the range.
    for (from, step) in [
        (DATA + PAGE - 0x200, 8),
        (DATA + 0x7ff, 0x20),
        (READ_ONLY - 0x100, 8),
        (READ_ONLY + PAGE - 0x100, 1),
        (CODE + 0x800, 8),
    ] {
        let code = assemble(|a| {
            let (mut top, mut odd) = (a.create_label(), a.create_label());
            a.mov(rsi, from)?;
            a.mov(ecx, 200)?;
            a.set_label(&mut top)?;
            a.mov(rax, qword_ptr(rsi + 0x10))?;
            a.lea(rdi, ptr(rsi + 8))?;
            a.add(rax, qword_ptr(rsi))?;
            a.mov(r8, qword_ptr(rbx))?;
            a.test(cl, 1)?;
            a.jne(odd)?;
            a.mov(qword_ptr(rsi + 0x30), rax)?;
            a.set_label(&mut odd)?;
            a.add(qword_ptr(rdi + 0x18), rcx)?;
            a.movups(xmm1, xmmword_ptr(rdi + 0x10))?;
            a.mov(qword_ptr(rbx + 0x18), r8)?;
            a.push(rax)?;
            a.push(rdi)?;
            a.movups(xmmword_ptr(rdi), xmm1)?;
            a.pop(rdx)?;
            a.mov(byte_ptr(rsp + 3), cl)?;
            a.pop(r9)?;
            a.add(rsi, step)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.cpuid()
        });
        for kind in [Kind::Plain, Kind::Private, Kind::Uncached] {
            agree(kind, &code);
        }
    }
}

#[test]
fn a_region_whose_groups_are_split_is_translated_without() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rsi, DATA + PAGE - 0x10)?;
        a.mov(ecx, 50_000)?;
        a.set_label(&mut top)?;
        a.add(rax, qword_ptr(rsi))?;
        a.add(rax, qword_ptr(rsi + 0x10))?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.cpuid()
    });
    let start = Start::new(1, &code);
    let (m, _) = translated(foreground(), &start);
    let stats = m.engine.as_ref().expect("made with one").stats();
    // Each time round once, until then.
    assert!(stats.interpreted < 20_000, "{stats:?}");
}

#[test]
fn instructions_and_accesses_across_pages() {
    for back in 1..9 {
        // A ten-byte MOV across the page, in a loop.
        let mut a = CodeAssembler::new(64).expect("64 bits");
        let mut build = || -> Result<Vec<u8>, IcedError> {
            let mut top = a.create_label();
            let mut start = a.create_label();
            a.jmp(start)?;
            let filler = PAGE as usize - 5 - 6 - back;
            a.set_label(&mut start)?;
            // A JMP rel8 is two bytes, so the filler is one long NOP sled.
            for _ in 0..filler + 3 {
                a.nop()?;
            }
            a.mov(ecx, 30)?;
            a.set_label(&mut top)?;
            a.mov(rdx, 0x1122_3344_5566_7788u64)?;
            a.add(rax, rdx)?;
            a.mov(qword_ptr(DATA + PAGE - 3), rax)?;
            a.add(qword_ptr(DATA + 2 * PAGE - 5), rax)?;
            a.movups(xmm1, xmmword_ptr(DATA + PAGE - 9))?;
            a.paddb(xmm1, xmm2)?;
            a.movups(xmmword_ptr(STACK + PAGE - 4), xmm1)?;
            a.vpaddq(ymm5, ymm5, ymmword_ptr(DATA + PAGE - 9))?;
            a.vmovdqu(ymmword_ptr(DATA + 3 * PAGE - 31), ymm5)?;
            a.cmp(word_ptr(DATA + PAGE - 1), 7)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.cpuid()?;
            a.assemble(CODE)
        };
        let code = build().expect("an encodable program");
        agree(Kind::Plain, &code);
        if back == 4 {
            agree(Kind::Private, &code);
            agree(Kind::Uncached, &code);
        }
    }
}

#[test]
fn a_trap_flag_steps_through_translated_code() {
    let code = assemble(|a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.add(rax, 1)?;
        a.add(rdx, rax)?;
        a.cpuid()
    });
    agree(Kind::Plain, &code);
    let (_, out) = translated(foreground(), &Start::new(0, &code));
    assert!(matches!(out.stop, Stop::Exception(e) if e.vector == 1));
}

#[test]
fn rounding_follows_mxcsr() {
    // The same division before and after each change, in a loop.
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(r15d, 20)?;
        a.set_label(&mut top)?;
        for n in 0..4u64 {
            a.ldmxcsr(dword_ptr(DATA + 4 * n))?;
            a.mov(eax, 10)?;
            a.cvtsi2sd(xmm0, eax)?;
            a.mov(edx, 3)?;
            a.cvtsi2sd(xmm1, edx)?;
            a.divsd(xmm0, xmm1)?;
            a.movsd_2(qword_ptr(rbx + 8 * n), xmm0)?;
            a.cvtsi2ss(xmm2, r9)?;
            a.movd(dword_ptr(rbp + 8 * n), xmm2)?;
        }
        a.dec(r15d)?;
        a.jne(top)?;
        a.ldmxcsr(dword_ptr(DATA))?;
        a.cpuid()
    });
    agree(Kind::Plain, &code);
}

#[test]
fn unmasked_floating_point_exceptions_are_raised() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(r15d, 20)?;
        a.set_label(&mut top)?;
        a.xorps(xmm1, xmm1)?;
        a.mov(eax, r15d)?;
        a.cvtsi2sd(xmm0, eax)?;
        a.divsd(xmm0, xmm1)?;
        a.dec(r15d)?;
        a.cmp(r15d, 10)?;
        a.jne(top)?;
        // Division by zero is unmasked from here on.
        a.ldmxcsr(dword_ptr(DATA + 20))?;
        a.jmp(top)
    });
    agree(Kind::Plain, &code);
    let (_, out) = translated(foreground(), &Start::new(0, &code));
    assert!(matches!(out.stop, Stop::Exception(e) if e.vector == 19));
    assert_eq!(out.gpr[15], 10);
}

/// A result that is overwritten before anybody reads it has raised its flags even so.
#[test]
fn dead_results_raise_their_flags() {
    let divide: [Emit; 3] = [
        |a| a.divsd(xmm2, xmm3),
        |a| a.divps(xmm2, xmm3),
        |a| a.vdivpd(ymm2, ymm2, ymm3),
    ];
    for (f, other_block) in divide.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let code = assemble(|a| {
            let mut top = a.create_label();
            let mut further = a.create_label();
            a.mov(ecx, 30)?;
            a.mov(r8, DATA)?;
            a.set_label(&mut top)?;
            a.mov(dword_ptr(r8), 0x1f80)?;
            a.ldmxcsr(dword_ptr(r8))?;
            // 1.0, or pairs of it, by zero
            a.mov(rax, 0x3f80_0000_3f80_0000u64)?;
            a.movq(xmm2, rax)?;
            a.pxor(xmm3, xmm3)?;
            f(a)?;
            if other_block {
                a.test(ecx, ecx)?;
                a.jne(further)?;
                a.nop()?;
            }
            a.set_label(&mut further)?;
            a.vpxor(ymm2, ymm2, ymm2)?;
            a.stmxcsr(dword_ptr(r8))?;
            a.mov(edx, dword_ptr(r8))?;
            a.add(rsi, rdx)?;
            a.dec(ecx)?;
            a.jne(top)
        });
        agree(Kind::Plain, &code);
    }
}
