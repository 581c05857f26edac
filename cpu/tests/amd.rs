//! What AMD's processors have and most test hosts lack, against what the manuals say; and the XSAVE family against the host.
#![allow(unsafe_code)] // runs the host's XSAVE family

mod oracle;

use oracle::{CODE, DATA, guest};
use sevlab_cpu::interp::step;
use sevlab_cpu::state::Lane;
use sevlab_cpu::stop::{Exception, Intercept, InterceptKind, Stop};
use sevlab_cpu::vcpu::Vcpu;

fn run(v: &mut Vcpu, code: &[u8]) -> Result<(), Stop> {
    v.write(CODE, code).expect("mapped");
    v.state.rip = CODE;
    step(v)
}

fn machine() -> Box<Vcpu> {
    guest(&[(CODE, 1), (DATA, 4)])
}

const X: u64 = 0x0123_4567_89ab_cdef;

#[test]
fn bit_fields() {
    let mut v = machine();
    // extrq xmm1, 8, 16; 0, 0 (all of it); 20, 60 (past the end: cut off)
    for (length, index, want) in [
        (8u8, 16u8, X >> 16 & 0xff),
        (0, 0, X),
        (20, 60, X >> 60),
        (0xc8, 0xd0, X >> 16 & 0xff),
    ] {
        v.state.xmm[1] = Lane([X, 7]);
        run(&mut v, &[0x66, 0x0f, 0x78, 0xc1, length, index]).expect("runs");
        assert_eq!(v.state.xmm[1].0, [want, 0], "{length} {index}");
    }
    // extrq xmm1, xmm9: length and index from its first two bytes
    v.state.xmm[1] = Lane([X, 7]);
    v.state.xmm[9] = Lane([4 | 12 << 8, 0]);
    run(&mut v, &[0x66, 0x41, 0x0f, 0x79, 0xc9]).expect("runs");
    assert_eq!(v.state.xmm[1].0, [X >> 12 & 15, 0]);
    // insertq xmm1, xmm2, 8, 4
    v.state.xmm[1] = Lane([X, 7]);
    v.state.xmm[2] = Lane([0xfff0_00a5, 9]);
    run(&mut v, &[0xf2, 0x0f, 0x78, 0xca, 8, 4]).expect("runs");
    assert_eq!(v.state.xmm[1].0, [X & !0xff0 | 0xa50, 0]);
    // insertq xmm1, xmm2: length and index from bytes 8 and 9
    v.state.xmm[1] = Lane([X, 7]);
    v.state.xmm[2] = Lane([0x5a, 8 | 56 << 8]);
    run(&mut v, &[0xf2, 0x0f, 0x79, 0xca]).expect("runs");
    assert_eq!(v.state.xmm[1].0, [X & u64::MAX >> 8 | 0x5a << 56, 0]);
}

#[test]
fn scalar_streams() {
    let mut v = machine();
    v.state.xmm[3] = Lane([X, 0]);
    v.state.gpr[0] = DATA + 3;
    // movntss [rax], xmm3; movntsd [rax+8], xmm3
    run(&mut v, &[0xf3, 0x0f, 0x2b, 0x18]).expect("runs");
    run(&mut v, &[0xf2, 0x0f, 0x2b, 0x58, 8]).expect("runs");
    assert_eq!(v.read_u64(DATA + 3).expect("mapped"), X & 0xffff_ffff);
    assert_eq!(v.read_u64(DATA + 11).expect("mapped"), X);
}

#[test]
fn a_line_of_zeros() {
    let mut v = machine();
    v.write(DATA, &[0xff; 256]).expect("mapped");
    v.state.gpr[0] = DATA + 64 + 17;
    run(&mut v, &[0x0f, 0x01, 0xfc]).expect("runs");
    let mut b = [0; 256];
    v.read(DATA, &mut b).expect("mapped");
    assert!(b[..64].iter().chain(&b[128..]).all(|x| *x == 0xff));
    assert!(b[64..128].iter().all(|x| *x == 0));
    // With a 32-bit address, and where nothing is.
    v.state.gpr[0] |= 1 << 40;
    run(&mut v, &[0x67, 0x0f, 0x01, 0xfc]).expect("runs");
    let stop = run(&mut v, &[0x0f, 0x01, 0xfc]);
    assert!(
        matches!(stop, Err(Stop::Exception(e)) if e.vector == 14),
        "{stop:?}"
    );
}

#[test]
fn hints_and_counters() {
    let mut v = machine();
    v.state.gpr[0] = DATA;
    v.state.gpr[1] = 0;
    run(&mut v, &[0x0f, 0x01, 0xfa]).expect("monitorx");
    run(&mut v, &[0x0f, 0x01, 0xfb]).expect("mwaitx");
    v.state.gpr[1] = 4;
    assert_eq!(
        run(&mut v, &[0x0f, 0x01, 0xfa]),
        Err(Exception::GENERAL_PROTECTION.into())
    );
    assert_eq!(
        run(&mut v, &[0x0f, 0x01, 0xfb]),
        Err(Exception::GENERAL_PROTECTION.into())
    );
    // RDPRU of MPERF is a reading of the TSC, of an unknown register it is 0.
    v.state.gpr[1] = 0;
    let tsc = Stop::Intercept(Intercept {
        kind: InterceptKind::Rdtsc,
        len: 3,
    });
    assert_eq!(run(&mut v, &[0x0f, 0x01, 0xfd]), Err(tsc));
    v.state.gpr[1] = 2;
    run(&mut v, &[0x0f, 0x01, 0xfd]).expect("runs");
    assert_eq!(
        (v.state.gpr[0], v.state.gpr[2], v.state.rip),
        (0, 0, CODE + 3)
    );
    // WBNOINVD is privileged; MONITOR and MWAIT do not exist at CPL 3; PREFETCHW of nothing is fine.
    assert_eq!(
        run(&mut v, &[0xf3, 0x0f, 0x09]),
        Err(Exception::GENERAL_PROTECTION.into())
    );
    assert_eq!(
        run(&mut v, &[0x0f, 0x01, 0xc8]),
        Err(Exception::INVALID_OPCODE.into())
    );
    run(&mut v, &[0x0f, 0x0d, 0x08]).expect("prefetchw");
}

#[test]
fn far_transfers_in_the_same_segment() {
    let mut v = machine();
    let cs = v.state.seg[1].selector;
    v.state.gpr[4] = DATA + 0x800;
    v.state.gpr[0] = DATA;
    v.write_u64(DATA, CODE + 0x100).expect("mapped");
    v.write_u16(DATA + 8, cs).expect("mapped");
    // jmp far [rax] with a 64-bit offset
    run(&mut v, &[0x48, 0xff, 0x28]).expect("jumps");
    assert_eq!(v.state.rip, CODE + 0x100);
    // call far [rax], and back by retf
    run(&mut v, &[0x48, 0xff, 0x18]).expect("calls");
    assert_eq!((v.state.rip, v.state.gpr[4]), (CODE + 0x100, DATA + 0x7f0));
    assert_eq!(v.read_u64(DATA + 0x7f0).expect("mapped"), CODE + 3);
    run(&mut v, &[0x48, 0xca, 0x10, 0x00]).expect("returns");
    assert_eq!((v.state.rip, v.state.gpr[4]), (CODE + 3, DATA + 0x810));
    // Another segment.
    v.write_u16(DATA + 8, 0x23).expect("mapped");
    let stop = run(&mut v, &[0x48, 0xff, 0x28]);
    assert!(
        matches!(stop, Err(Stop::Exception(e)) if e.vector == 13 && e.error == Some(0x20)),
        "{stop:?}"
    );
    assert_eq!(v.state.rip, CODE);
}

/// Areas that the host's XSAVE and XSAVEC write, from the same state.
#[test]
fn xsave_areas_are_the_hosts() {
    #[repr(C, align(64))]
    struct Area([u8; 4096]);
    type Save = unsafe fn(*mut u8, u32);
    unsafe fn save(at: *mut u8, mask: u32) {
        // SAFETY: the caller's area is large enough for the components asked for.
        unsafe {
            core::arch::asm!("vpxor xmm0, xmm0, xmm0", "vpcmpeqd ymm1, ymm1, ymm1", "xsave64 [{at}]", "vzeroupper", at = in(reg) at, in("eax") mask, in("edx") 0, out("xmm0") _, out("xmm1") _)
        };
    }
    unsafe fn compact(at: *mut u8, mask: u32) {
        // SAFETY: as above.
        unsafe {
            core::arch::asm!("vpxor xmm0, xmm0, xmm0", "vpcmpeqd ymm1, ymm1, ymm1", "xsavec64 [{at}]", "vzeroupper", at = in(reg) at, in("eax") mask, in("edx") 0, out("xmm0") _, out("xmm1") _)
        };
    }
    let forms: [(Save, [u8; 4]); 2] = [
        (save, [0x48, 0x0f, 0xae, 0x20]),
        (compact, [0x48, 0x0f, 0xc7, 0x20]),
    ];
    for (native, code) in forms {
        for mask in [0u32, 1, 2, 4, 6, 7] {
            let mut host = Area([0; 4096]);
            // SAFETY: an aligned area of a page; x87, SSE and AVX state fit.
            unsafe { native(host.0.as_mut_ptr(), mask) };
            let mut v = machine();
            v.write(DATA, &[0; 4096]).expect("mapped");
            v.state.gpr[0] = u64::from(mask);
            v.state.gpr[2] = 0;
            v.state.gpr[3] = DATA;
            let b =
                |n: usize| u64::from_le_bytes(host.0[n..n + 8].try_into().expect("eight bytes"));
            // The header says what this process had in use: put that into the guest.
            for n in 0..16 {
                if mask & 2 != 0 {
                    v.state.xmm[n] = Lane([b(160 + 16 * n), b(168 + 16 * n)]);
                }
                if mask & 4 != 0 {
                    v.state.ymmh[n] = Lane([b(576 + 16 * n), b(584 + 16 * n)]);
                }
            }
            let mut code = code;
            code[3] |= 3; // [rbx]
            run(&mut v, &code).expect("saves");
            let mut out = [0; 832];
            v.read(DATA, &mut out).expect("mapped");
            // What is in the x87 registers is this thread's; the header and the rest must agree.
            assert_eq!(out[160..416], host.0[160..416], "xmm, {mask}");
            assert_eq!(out[576..832], host.0[576..832], "ymm, {mask}");
            assert_eq!(out[520..528], host.0[520..528], "XCOMP_BV, {mask}");
            assert_eq!(out[512] & !3, host.0[512] & !3, "XSTATE_BV, {mask}");
            if host.0[24..28] != [0; 4] {
                assert_eq!(out[24..28], 0x1f80u32.to_le_bytes(), "MXCSR, {mask}");
            }
            let saved = out[24..28] != [0; 4];
            assert_eq!(
                saved,
                host.0[24..28] != [0; 4],
                "whether MXCSR is saved, {mask}"
            );
        }
    }
}
