//! The processor's paths by cost: the fast TLB's probe and the filter of simulated caches in translated code, a page walk, a
//! world switch, a compilation. Time of the simulator, not of the simulated machine.
//!
//! `cargo bench -p sevlab-benches --bench cpu`

#[path = "../../jit/tests/diff/machine.rs"]
mod machine;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use machine::{CODE, DATA, Kind, Machine, Start};
use sevlab_arch::vmcb::{Control, Intercepts2, Segment, Vmcb};
use sevlab_arch::{Asid, Spa, Va};
use sevlab_cpu::{Access, SevMode, Vcpu, VcpuConfig, svm};
use sevlab_jit::JitOptions;
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, MemCtl, MemoryKey};
use zerocopy::IntoBytes;

/// Accesses of a turn of the loop below.
const ACCESSES: u64 = 8;
/// Its turns.
const TURNS: u32 = 100_000;

/// A loop of loads and stores that hit the fast TLB.
fn accesses() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 bits");
    let mut build = || -> Result<Vec<u8>, IcedError> {
        let mut top = a.create_label();
        a.mov(ecx, TURNS)?;
        a.set_label(&mut top)?;
        for i in 0..ACCESSES as i32 / 2 {
            // Two base registers, so that no two accesses share a probe.
            a.mov(rax, qword_ptr(rbx + 64 * i))?;
            a.mov(qword_ptr(rbp + 64 * i), rax)?;
        }
        a.sub(ecx, 1)?;
        a.jne(top)?;
        a.cpuid()?;
        a.assemble(CODE)
    };
    build().expect("an encodable program")
}

fn options(threshold: u32) -> JitOptions {
    JitOptions {
        threshold,
        background: false,
        ..JitOptions::default()
    }
}

/// Accesses in translated code, all of which hit.
fn probe(c: &mut Criterion) {
    let mut g = c.benchmark_group("probe");
    g.throughput(Throughput::Elements(u64::from(TURNS) * ACCESSES));
    let model = sevlab_machine::presets::load("epyc-milan", &[]).expect("a preset");
    for (name, kind, model) in [
        ("page, plain", Kind::Plain, None),
        ("page, SEV", Kind::Private, None),
        ("hierarchy, SEV", Kind::Private, Some(Arc::new(model))),
    ] {
        let modelled = model.is_some();
        let mut m = Machine::with_model(kind, Some(options(50)), model);
        m.budget = u64::MAX;
        let start = Start::new(1, &accesses());
        g.bench_function(name, |b| {
            b.iter(|| {
                m.reset(&start);
                if modelled {
                    m.run_turn(1 << 40)
                } else {
                    m.run().expect("it ends").stop
                }
            });
        });
    }
    g.finish();
}

/// A walk of the page tables and the entry that it makes.
fn walk(c: &mut Criterion) {
    let mut g = c.benchmark_group("walk");
    for (name, kind) in [("plain", Kind::Plain), ("SEV", Kind::Private)] {
        let mut m = Machine::new(kind, None);
        m.reset(&Start::new(1, &accesses()));
        g.bench_function(format!("flush and translate, {name}"), |b| {
            b.iter(|| {
                m.vcpu.flush_tlb();
                black_box(m.vcpu.translate(Va(black_box(DATA)), Access::Read)).is_ok()
            });
        });
        g.bench_function(format!("flush and fill, {name}"), |b| {
            b.iter(|| {
                m.vcpu.flush_tlb();
                black_box(m.vcpu.fill(Va(black_box(DATA)), Access::Read)).is_ok()
            });
        });
    }
    g.finish();
}

const ASID: Asid = Asid(3);
const VMCB: Spa = Spa(0x1000);
const VMSA: Spa = Spa(0x20_3000);

/// A vCPU that can be entered and left.
fn entered(mode: SevMode) -> Box<Vcpu> {
    let cipher = CipherKind::Aes128Xex;
    let mem = MemCtl::new(Config {
        size: 16 << 20,
        cipher,
        cache: CacheMode::Page,
        resident: None,
        tweak_seed: 4,
        hierarchy: None,
        cores: 1,
        snp: false,
    })
    .expect("a configuration");
    let key = MemoryKey::random(cipher).expect("a key");
    mem.install_key(ASID, key).expect("a free ASID");
    let config = VcpuConfig {
        asid: ASID,
        mode,
        ..VcpuConfig::default()
    };
    let mut vcpu = Vcpu::new(Arc::clone(&mem), config);
    let segment = |attributes| Segment {
        attributes,
        limit: u32::MAX,
        ..Segment::default()
    };
    let mut vmcb = Vmcb {
        control: Control {
            asid: ASID.0,
            intercept_misc2: Intercepts2::VMRUN.bits(),
            nested_control: match mode {
                SevMode::Off => 1,
                SevMode::Sev => 3,
                _ => 7,
            },
            nested_cr3: 0x5000,
            vmsa_pa: VMSA.0,
            ..Control::default()
        },
        ..Vmcb::default()
    };
    if mode.encrypted_state() {
        let mut image = svm::image_of(&vcpu);
        image.efer = 0x1d01;
        image.cr0 = 0x8005_0033;
        image.cr4 = 0x0035_06f0;
        image.dr6 = 0xffff_0ff0;
        image.dr7 = 0x400;
        let mut page = [0; 4096];
        let bytes = image.as_bytes();
        page[..bytes.len()].copy_from_slice(bytes);
        mem.encrypt_for_firmware(ASID, VMSA, &page).expect("a page");
        vcpu.vmsa_installed(VMSA).expect("a page");
    } else {
        let save = &mut vmcb.save;
        save.es = segment(0xcf3);
        save.cs = segment(0xafb);
        save.ss = segment(0xcf3);
        save.ds = segment(0xcf3);
        save.cpl = 3;
        save.efer = 0x1d01;
        save.cr0 = 0x8005_0033;
        save.cr4 = 0x0035_06f0;
        save.dr6 = 0xffff_0ff0;
        save.dr7 = 0x400;
        save.rflags = 2;
    }
    mem.write(Domain::Shared, VMCB, vmcb.as_bytes())
        .expect("a page");
    vcpu
}

/// VMRUN and the exit behind it.
fn world_switch(c: &mut Criterion) {
    let mut g = c.benchmark_group("world switch");
    for (name, mode) in [
        ("off", SevMode::Off),
        ("SEV", SevMode::Sev),
        ("SEV-ES", SevMode::Es),
    ] {
        let mut vcpu = entered(mode);
        g.bench_function(name, |b| {
            b.iter(|| {
                svm::enter(&mut vcpu, VMCB).expect("enters");
                svm::leave(&mut vcpu, VMCB, &svm::VmExit::default()).expect("leaves");
            });
        });
    }
    g.finish();
}

/// The loop above, translated anew: processor time of the compiler alone.
fn compile(c: &mut Criterion) {
    let mut g = c.benchmark_group("compile");
    let model = Arc::new(sevlab_machine::presets::load("epyc-milan", &[]).expect("a preset"));
    for (name, model) in [("page", None), ("hierarchy", Some(model))] {
        let start = Start::new(1, &accesses());
        g.bench_function(format!("a loop of {ACCESSES} accesses, {name}"), |b| {
            b.iter_custom(|n| {
                let mut time = Duration::ZERO;
                for _ in 0..n {
                    let mut m = Machine::with_model(Kind::Private, Some(options(2)), model.clone());
                    m.budget = u64::MAX;
                    m.reset(&start);
                    m.run_turn(2000);
                    let stats = m.engine.as_ref().expect("a translator").stats();
                    assert!(stats.regions > 0, "nothing was translated");
                    time += stats.compile_time / stats.regions as u32;
                }
                time
            });
        });
    }
    g.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = probe, walk, world_switch, compile
}
criterion_main!(benches);
