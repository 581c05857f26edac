//! The world switch: every field in every mode, what the hypervisor sees, and what VMRUN refuses.

use std::sync::Arc;
use std::time::Instant;

use sevlab_arch::rmp::{RmpEntry, RmpStatus, RmpUpdate};
use sevlab_arch::vmcb::{Control, EventInjection, Intercepts2, Save, Segment, Vmcb};
use sevlab_arch::vmsa::{SevFeatures, Vmsa};
use sevlab_arch::{Asid, Gpa, Spa};
use sevlab_cpu::svm::{self, EntryError, VMEXIT_INVALID, VmExit};
use sevlab_cpu::{SevMode, Vcpu, VcpuConfig};
use sevlab_memctl::{
    CacheMode, CipherKind, Config, Domain, MemCtl, MemoryKey, PageSize, RmpAdjust, VmplPerms,
};
use zerocopy::{FromBytes, IntoBytes};

const ASID: Asid = Asid(3);
const VMCB: Spa = Spa(0x1000);
const VMSA: Spa = Spa(0x20_3000);
/// Where the VMSA is to the guest.
const VMSA_GPA: Gpa = Gpa(0x7_5000);
const MODES: [SevMode; 4] = [SevMode::Off, SevMode::Sev, SevMode::Es, SevMode::Snp];

/// Bytes that differ everywhere.
fn pattern(seed: u64, bytes: &mut [u8]) {
    let mut x = seed | 1;
    for b in bytes {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        *b = (x >> 56) as u8;
    }
}

fn segment(n: u64, attributes: u16) -> Segment {
    Segment {
        selector: 0x10 + n as u16,
        attributes,
        limit: 0xffff_0000 + n as u32,
        base: 0x7f00_0000_0000 + n,
    }
}

/// The fields with rules, the same in both save areas.
macro_rules! legal {
    ($v:expr) => {{
        let v = $v;
        v.es = segment(1, 0xcf3);
        v.cs = segment(2, 0xafb);
        v.ss = segment(3, 0xcf3);
        v.ds = segment(4, 0xcf3);
        v.fs = segment(5, 0xcf3);
        v.gs = segment(6, 0xcf3);
        v.ldtr = segment(7, 0x82);
        v.tr = segment(8, 0x8b);
        v.gdtr = Segment {
            limit: 0x7f,
            base: 0xffff_8000_1234_0000,
            ..Segment::default()
        };
        v.idtr = Segment {
            limit: 0xfff,
            base: 0xffff_8000_5678_0000,
            ..Segment::default()
        };
        v.cpl = 3;
        v.efer = 0x1d01;
        v.cr0 = 0x8005_0033;
        v.cr4 = 0x0035_06f0;
        v.dr6 = 0xffff_0ff0;
        v.dr7 = 0x403;
        v.rflags = 0x0004_0ad7;
    }};
}

fn save() -> Save {
    let mut v = Save::default();
    pattern(1, &mut v.as_mut_bytes()[..0x2e8]);
    legal!(&mut v);
    v
}

fn vmsa(snp: bool) -> Vmsa {
    let mut v = Vmsa::default();
    pattern(2, v.as_mut_bytes());
    legal!(&mut v);
    v.vmpl = 0;
    v.sev_features = if snp {
        SevFeatures::SNP_ACTIVE.bits()
    } else {
        0
    };
    v.mxcsr = 0x1fa1;
    v.x87_fsw = 0x2841;
    // One register of each kind: TOP is 5, so ST0 is physical 5.
    let st = [
        (0x8123_4567_89ab_cdefu64, 0x4001u16),
        (0, 0),
        (1 << 62, 0x7fff),
        (7, 0),
    ];
    for (i, (mantissa, exponent)) in st.into_iter().enumerate() {
        v.fpreg_x87[10 * i..10 * i + 8].copy_from_slice(&mantissa.to_le_bytes());
        v.fpreg_x87[10 * i + 8..10 * i + 10].copy_from_slice(&exponent.to_le_bytes());
    }
    // Physical 5 valid, 6 zero, 7 special, 0 special, others empty.
    v.x87_ftw = 2 | 3 << 2 | 3 << 4 | 3 << 6 | 3 << 8 | 1 << 12 | 2 << 14;
    v
}

struct Machine {
    mem: Arc<MemCtl>,
    vcpu: Box<Vcpu>,
}

impl Machine {
    fn new(mode: SevMode) -> Self {
        let cipher = CipherKind::Aes128Xex;
        let snp = mode == SevMode::Snp;
        let mem = MemCtl::new(Config {
            size: 16 << 20,
            cipher,
            cache: CacheMode::Page,
            resident: None,
            tweak_seed: 4,
            hierarchy: None,
            cores: 1,
            snp,
        })
        .unwrap();
        mem.install_key(ASID, MemoryKey::new(cipher, &[9; 16]).unwrap())
            .unwrap();
        let vcpu = Vcpu::new(
            Arc::clone(&mem),
            VcpuConfig {
                asid: ASID,
                mode,
                ..VcpuConfig::default()
            },
        );
        let mut m = Self { mem, vcpu };
        let nested = match mode {
            SevMode::Off => 1,
            SevMode::Sev => 3,
            _ => 7,
        };
        let mut vmcb = Vmcb {
            control: Control {
                asid: ASID.0,
                intercept_misc2: Intercepts2::VMRUN.bits(),
                nested_control: nested,
                nested_cr3: 0x5000,
                vmsa_pa: VMSA.0,
                tsc_offset: 0x1234_5678,
                int_control: Control::V_INTR_MASKING | 7,
                ghcb_gpa: 0xabc_d000,
                event_inj: EventInjection::exception(13, Some(4)).0,
                ..Control::default()
            },
            save: save(),
        };
        if mode.encrypted_state() {
            vmcb.save = Save::default();
            let mut page = [0u8; 4096];
            page[..Vmsa::SIZE].copy_from_slice(vmsa(snp).as_bytes());
            m.mem.encrypt_for_firmware(ASID, VMSA, &page).unwrap();
            if snp {
                m.mark_vmsa();
            }
            m.vcpu.vmsa_installed(VMSA).unwrap();
        }
        m.set_vmcb(&vmcb);
        m
    }

    fn mark_vmsa(&self) {
        let update = RmpUpdate {
            gpa: VMSA_GPA.0,
            assigned: 1,
            asid: ASID.0,
            ..RmpUpdate::default()
        };
        let rmp = self.mem.rmp();
        assert_eq!(rmp.rmpupdate(VMSA, &update), RmpStatus::SUCCESS);
        rmp.pvalidate(ASID, VMSA_GPA, VMSA, PageSize::Size4K, true)
            .unwrap();
        self.set_vmsa_bit(true);
    }

    fn set_vmsa_bit(&self, vmsa: bool) {
        let adjust = RmpAdjust {
            target_vmpl: 1,
            perms: VmplPerms::empty(),
            vmsa,
        };
        let rmp = self.mem.rmp();
        let status = rmp.rmpadjust(ASID, VMSA_GPA, VMSA, PageSize::Size4K, 0, adjust);
        assert_eq!(status.unwrap(), RmpStatus::SUCCESS);
        let marked = rmp.lookup(VMSA).unwrap().lo & RmpEntry::VMSA != 0;
        assert_eq!(marked, vmsa);
    }

    fn vmcb(&self) -> Vmcb {
        let mut page = [0; 4096];
        self.mem.read(Domain::Shared, VMCB, &mut page).unwrap();
        Vmcb::read_from_bytes(&page).unwrap()
    }

    fn set_vmcb(&self, v: &Vmcb) {
        self.mem.write(Domain::Shared, VMCB, v.as_bytes()).unwrap();
    }

    fn edit(&self, f: impl FnOnce(&mut Vmcb)) {
        let mut v = self.vmcb();
        f(&mut v);
        self.set_vmcb(&v);
    }

    fn decrypted(&self) -> Vmsa {
        let mut v = Vmsa::default();
        self.mem
            .decrypt_for_firmware(ASID, VMSA, v.as_mut_bytes())
            .unwrap();
        v
    }

    /// Replaces the VMSA as the firmware would.
    fn install(&mut self, v: &Vmsa) {
        self.mem
            .encrypt_for_firmware(ASID, VMSA, v.as_bytes())
            .unwrap();
        self.vcpu.vmsa_installed(VMSA).unwrap();
    }

    fn enter(&mut self) -> Result<(), EntryError> {
        svm::enter(&mut self.vcpu, VMCB)
    }

    fn leave(&mut self, exit: &VmExit) {
        svm::leave(&mut self.vcpu, VMCB, exit).unwrap();
    }

    fn refused(&mut self) -> EntryError {
        let e = self.enter().unwrap_err();
        assert_eq!(self.vmcb().control.exit_code, VMEXIT_INVALID);
        assert!(!self.vcpu.in_guest());
        e
    }
}

#[test]
fn an_idle_round_trip_changes_no_field() {
    for mode in MODES {
        let mut m = Machine::new(mode);
        let before = m.vmcb();
        m.enter().unwrap();
        assert!(m.vcpu.in_guest());
        assert_eq!(m.vcpu.mode, mode);
        m.leave(&VmExit::default());
        let after = m.vmcb();
        assert_eq!(before.save, after.save, "{mode:?}");
        if mode.encrypted_state() {
            let v = m.decrypted();
            let want = vmsa(mode == SevMode::Snp);
            let differs = v.as_bytes().iter().zip(want.as_bytes());
            let at = differs.clone().position(|(a, b)| a != b);
            assert_eq!(at, None, "{mode:?}: offset {at:x?}");
        }
        m.enter().unwrap();
    }
}

#[test]
fn the_guest_gets_every_register() {
    for mode in MODES {
        let mut m = Machine::new(mode);
        m.vcpu.state.gpr[3] = 0xb0b;
        m.vcpu.state.xmm[2].0 = [1, 2];
        m.enter().unwrap();
        let es = mode.encrypted_state();
        let (v, s) = (vmsa(false), save());
        let state = &m.vcpu.state;
        let pick = |a: u64, b: u64| if es { a } else { b };
        assert_eq!(state.rip, pick(v.rip, s.rip));
        assert_eq!(state.gpr[0], pick(v.rax, s.rax));
        assert_eq!(state.gpr[4], pick(v.rsp, s.rsp));
        assert_eq!(state.gpr[3], pick(v.rbx, 0xb0b));
        assert_eq!(state.gpr[15], pick(v.r15, 0));
        assert_eq!(state.rflags(), 0x0004_0ad7);
        assert_eq!(state.cpl, 3);
        assert_eq!(state.sys.cr3, pick(v.cr3, s.cr3));
        assert_eq!(state.sys.lstar, pick(v.lstar, s.lstar));
        assert_eq!(state.sys.pat, pick(v.g_pat, s.g_pat));
        assert_eq!(state.sys.cr8, 7);
        assert_eq!(state.sys.tsc_offset, 0x1234_5678);
        assert_eq!(state.seg[1].selector, 0x12);
        assert_eq!(state.seg[4].base, 0x7f00_0000_0005);
        assert_eq!(state.sys.gdtr, (0xffff_8000_1234_0000, 0x7f));
        assert_eq!(state.sys.sev_status, [0, 1, 3, 7][mode as usize]);
        let xmm2 = u64::from_le_bytes(v.fpreg_xmm[32..40].try_into().unwrap());
        assert_eq!(state.xmm[2].0[0], pick(xmm2, 1));
        if es {
            assert_eq!(state.mxcsr, 0x1fa1);
            assert_eq!(state.fx.0[4], 0b1110_0001);
            assert_eq!(m.vcpu.ghcb(), Gpa(0xabc_d000));
            assert_eq!(state.sys.dr[2], v.dr2);
            assert_eq!(state.sys.xcr0, v.xcr0);
        }
        let event = EventInjection::exception(13, Some(4));
        assert_eq!(m.vcpu.pending_event, event);
        assert_eq!(m.vcpu.asid, ASID);
        assert_eq!(m.vcpu.ncr3, Some(Spa(0x5000)));
    }
}

#[test]
fn what_the_guest_changes_comes_back() {
    for mode in MODES {
        let mut m = Machine::new(mode);
        for round in 0..3u64 {
            m.enter().unwrap();
            let s = &mut m.vcpu.state;
            for (i, r) in s.gpr.iter_mut().enumerate() {
                *r = 0x1111 * (i as u64 + 1) + round;
            }
            s.rip = 0x40_0000 + round;
            s.set_rflags(0x246);
            s.xmm[15].0 = [round, 0xfeed];
            s.ymmh[0].0 = [0xbeef, round];
            s.sys.kernel_gs_base = 0x5000 + round;
            s.sys.cr8 = 3;
            s.sys.ghcb = 0x9000;
            s.fx.0[32..42].copy_from_slice(&[round as u8; 10]);
            m.leave(&VmExit::default());
            let v = m.vmcb();
            assert_eq!(v.control.int_control, Control::V_INTR_MASKING | 3);
            if mode.encrypted_state() {
                let v2 = m.decrypted();
                assert_eq!(v2.rip, 0x40_0000 + round);
                assert_eq!(v2.rsp, 0x5555 + round);
                assert_eq!(v2.r15, 0x1_1110 + round);
                assert_eq!(v2.rflags, 0x246);
                assert_eq!(v2.fpreg_xmm[240], round as u8);
                assert_eq!(v2.fpreg_ymm[0..2], [0xef, 0xbe]);
                assert_eq!(v2.fpreg_x87[9], round as u8);
                assert_eq!(v.control.ghcb_gpa, 0x9000);
                assert_eq!(v.control.int_state & 2, 2);
                assert_eq!(v.save, Save::default());
            } else {
                assert_eq!(v.save.rip, 0x40_0000 + round);
                assert_eq!(v.save.rax, 0x1111 + round);
                assert_eq!(v.save.kernel_gs_base, 0x5000 + round);
                // The rest is where VMRUN leaves it.
                assert_eq!(m.vcpu.state.gpr[9], 0xaaaa + round);
                assert_eq!(m.vcpu.state.xmm[15].0[1], 0xfeed);
            }
        }
    }
}

#[test]
fn the_exit_is_reported() {
    let exit = VmExit {
        code: 0x400,
        info1: 0x1_0000_0006,
        info2: 0x1234_5000,
        int_info: EventInjection::exception(14, Some(2)).0,
        next_rip: 0x40_1003,
        insn: [0x90; 15],
        insn_len: 3,
    };
    for mode in MODES {
        let mut m = Machine::new(mode);
        m.enter().unwrap();
        // The hypervisor changes its part meanwhile.
        m.edit(|v| v.control.tsc_offset = 99);
        m.leave(&exit);
        let c = m.vmcb().control;
        assert_eq!(
            (c.exit_code, c.exit_info1, c.exit_info2),
            (0x400, exit.info1, exit.info2)
        );
        assert_eq!(c.exit_int_info, exit.int_info);
        assert_eq!(c.event_inj & EventInjection::VALID, 0);
        assert_eq!(c.tsc_offset, 99);
        let shown = if mode.encrypted_state() {
            0
        } else {
            exit.next_rip
        };
        assert_eq!(c.next_rip, shown);
        let shown = if mode == SevMode::Off { 3 } else { 0 };
        assert_eq!(c.insn_len, shown);
        assert!(!m.vcpu.in_guest());
        let again = svm::leave(&mut m.vcpu, VMCB, &exit);
        assert_eq!(again, Err(EntryError::NotRunning { spa: VMCB }));
    }
}

/// Whether `value`'s bytes are anywhere in `hay`.
fn contains(hay: &[u8], value: u64) -> bool {
    hay.windows(8).any(|w| w == value.to_le_bytes())
}

#[test]
fn the_hypervisor_sees_no_register_of_an_encrypted_guest() {
    const SECRET: u64 = 0x5ec2_e7f0_0d15_ea5e;
    for mode in [SevMode::Es, SevMode::Snp] {
        let mut m = Machine::new(mode);
        m.enter().unwrap();
        let s = &mut m.vcpu.state;
        s.gpr = [SECRET; 16];
        s.rip = SECRET;
        for lane in s.xmm.iter_mut().chain(s.ymmh.iter_mut()) {
            lane.0 = [SECRET; 2];
        }
        for image in [&mut s.fx, &mut s.scratch] {
            image.0.as_chunks_mut::<8>().0.fill(SECRET.to_le_bytes());
        }
        s.cc.a = SECRET;
        s.cc.b = SECRET;
        s.cc.op = 1;
        s.sys.cr2 = SECRET;
        s.sys.cr3 = SECRET & !0xfff;
        s.sys.dr[0] = SECRET;
        s.sys.star = SECRET;
        s.sys.lstar = SECRET;
        s.sys.kernel_gs_base = SECRET;
        s.sys.sysenter_esp = SECRET;
        s.seg[4].base = SECRET;
        s.tr.base = SECRET;
        m.leave(&VmExit {
            next_rip: SECRET,
            ..VmExit::default()
        });
        // All of DRAM, as a dump has it.
        let mut dram = vec![0; m.mem.size() as usize];
        m.mem.bus_read(Spa(0), &mut dram);
        assert!(!contains(&dram, SECRET));
        // The register file.
        let s = &m.vcpu.state;
        assert_eq!(s.gpr, [0; 16]);
        assert_eq!(s.rip, 0);
        assert_eq!(s.rflags(), 2);
        assert!(s.xmm.iter().chain(&s.ymmh).all(|l| l.0 == [0; 2]));
        assert!(s.fx.0.iter().chain(&s.scratch.0).all(|&b| b == 0));
        assert_eq!(s.sys, sevlab_cpu::state::SystemRegs::default());
        assert_eq!((s.cc.a, s.cc.b, s.cc.r), (0, 0, 0));
        assert!(s.seg.iter().all(|s| s.base == 0) && s.tr.base == 0);
        // And the guest has it back.
        m.enter().unwrap();
        assert_eq!(m.vcpu.state.gpr[7], SECRET);
        assert_eq!(m.vcpu.state.ymmh[7].0[1], SECRET);
        assert_eq!(m.vcpu.state.sys.lstar, SECRET);
    }
}

#[test]
fn any_changed_bit_of_the_vmsa_is_refused() {
    for mode in [SevMode::Es, SevMode::Snp] {
        let mut m = Machine::new(mode);
        m.enter().unwrap();
        m.leave(&VmExit::default());
        for bit in (0..4096 * 8).step_by(13).chain([0, 4096 * 8 - 1]) {
            let at = VMSA.plus(bit / 8);
            let mut b = [0];
            m.mem.bus_read(at, &mut b);
            m.mem.bus_write(at, &[b[0] ^ 1 << (bit % 8)]);
            match m.refused() {
                EntryError::Integrity { spa, offset, .. } => {
                    assert_eq!((spa, offset as u64), (VMSA, bit / 8));
                }
                e => panic!("{e}"),
            }
            m.mem.bus_write(at, &b);
        }
        m.enter().unwrap();
    }
    let mut m = Machine::new(SevMode::Es);
    m.mem.bus_write(VMSA.plus(0x17b), &[1]);
    let message = m.refused().to_string();
    assert!(message.contains("0x17b (RFLAGS and RIP)"), "{message}");
}

#[test]
fn replays_and_other_keys_are_refused() {
    // The whole page as it was before: rolled back.
    let mut m = Machine::new(SevMode::Es);
    let mut old = [0; 4096];
    m.mem.bus_read(VMSA, &mut old);
    m.enter().unwrap();
    m.vcpu.state.rip += 2;
    m.leave(&VmExit::default());
    m.mem.bus_write(VMSA, &old);
    assert!(matches!(m.refused(), EntryError::Integrity { .. }));
    // The right ciphertext under another key.
    let mut m = Machine::new(SevMode::Es);
    let key = MemoryKey::new(CipherKind::Aes128Xex, &[8; 16]).unwrap();
    m.mem.install_key(ASID, key).unwrap();
    assert!(matches!(m.refused(), EntryError::Integrity { .. }));
    // A copy elsewhere, and another guest's ASID.
    let mut m = Machine::new(SevMode::Es);
    m.mem.bus_write(Spa(0x30_0000), &old);
    m.edit(|v| v.control.vmsa_pa = 0x30_0000);
    let spa = Spa(0x30_0000);
    assert_eq!(m.refused(), EntryError::NotInstalled { spa });
    let mut m = Machine::new(SevMode::Es);
    m.edit(|v| v.control.asid = 4);
    assert_eq!(m.refused(), EntryError::NotInstalled { spa: VMSA });
    // An ES guest entered as plain SEV runs on the hypervisor's save area, not on the VMSA.
    let mut m = Machine::new(SevMode::Es);
    m.edit(|v| v.control.nested_control = 3);
    assert!(matches!(m.refused(), EntryError::State { .. }));
}

#[test]
fn snp_needs_the_rmp_to_agree() {
    let mut m = Machine::new(SevMode::Snp);
    m.set_vmsa_bit(false);
    let denied = EntryError::NotVmsaPage {
        spa: VMSA,
        asid: ASID,
    };
    assert_eq!(m.refused(), denied);
    m.set_vmsa_bit(true);
    m.enter().unwrap();
    m.leave(&VmExit::default());
    // Taken away from the guest.
    let status = m.mem.rmp().rmpupdate(VMSA, &RmpUpdate::default());
    assert_eq!(status, RmpStatus::SUCCESS);
    assert_eq!(m.refused(), denied);
    // A VMSA without SNP_ACTIVE in an SNP context, and the reverse.
    let mut m = Machine::new(SevMode::Snp);
    m.install(&vmsa(false));
    assert!(matches!(m.refused(), EntryError::State { .. }));
    let mut m = Machine::new(SevMode::Es);
    m.install(&vmsa(true));
    assert!(matches!(m.refused(), EntryError::State { .. }));
}

#[test]
fn vmrun_checks() {
    type Edit = fn(&mut Vmcb);
    let control: [(Edit, &str); 8] = [
        (|v| v.control.asid = 0, "ASID 0"),
        (|v| v.control.intercept_misc2 = 0, "VMRUN intercept"),
        (|v| v.control.nested_control = 2, "nested paging"),
        (|v| v.control.nested_control = 5, "SEV-ES needs SEV"),
        (|v| v.control.nested_cr3 = 1 << 60, "nCR3"),
        (|v| v.control.tlb_control = 2, "TLB_CONTROL"),
        (|v| v.control.event_inj = 1 << 31 | 1 << 8, "EVENTINJ"),
        (|v| v.control.event_inj = 1 << 31 | 3 << 8 | 2, "EVENTINJ"),
    ];
    let state: [(Edit, &str); 11] = [
        (|v| v.save.efer = 0xd01, "SVME"),
        (|v| v.save.efer |= 1 << 40, "EFER has"),
        (|v| v.save.cr0 |= 1 << 29, "CR0.NW"),
        (|v| v.save.cr0 |= 1 << 32, "CR0 has"),
        (|v| v.save.cr4 |= 1 << 63, "CR4 has"),
        (|v| v.save.dr6 |= 1 << 32, "DR6"),
        (|v| v.save.dr7 |= 1 << 32, "DR7"),
        (|v| v.save.cr4 &= !(1 << 5), "CR4.PAE"),
        (|v| v.save.cr0 &= !1, "CR0.PE"),
        (|v| v.save.cs.attributes |= 1 << 10, "CS.L with"),
        (|v| v.save.cs.attributes &= !(1 << 9), "64-bit mode"),
    ];
    for (edit, want) in control.into_iter().chain(state) {
        let mut m = Machine::new(SevMode::Off);
        m.edit(edit);
        let rip = m.vcpu.state.rip;
        let message = m.refused().to_string();
        assert!(message.contains(want), "{message}: wanted {want}");
        assert_eq!(m.vcpu.state.rip, rip);
    }
    let mut m = Machine::new(SevMode::Off);
    for spa in [Spa(0x1008), Spa(1 << 40)] {
        assert_eq!(
            svm::enter(&mut m.vcpu, spa),
            Err(EntryError::Address { spa })
        );
    }
    let mut m = Machine::new(SevMode::Es);
    m.edit(|v| v.control.vmsa_pa = 1 << 40);
    assert!(matches!(m.refused(), EntryError::Control { .. }));
}

#[test]
fn translations_survive_an_entry_unless_asked() {
    let mut m = Machine::new(SevMode::Es);
    m.enter().unwrap();
    let fill = |m: &Machine| {
        let host = m.mem.host_page(Domain::Shared, Spa(0x8000), true);
        let perms = sevlab_memctl::Perms::RW;
        let host = host.unwrap().unwrap();
        m.vcpu.tlb.insert(sevlab_arch::Va(0x1000), host, perms);
    };
    let round = |m: &mut Machine| {
        m.leave(&VmExit::default());
        m.enter().unwrap();
        m.vcpu.tlb.occupied()
    };
    fill(&m);
    assert_eq!(round(&mut m), 1);
    m.vcpu.state.sys.cr3 += 0x1000;
    assert_eq!(
        round(&mut m),
        1,
        "the guest's own MOV to CR3 flushes, not the switch"
    );
    m.edit(|v| v.control.tlb_control = Control::TLB_FLUSH_ASID);
    assert_eq!(round(&mut m), 0);
    m.edit(|v| v.control.tlb_control = 0);
    fill(&m);
    m.edit(|v| v.control.nested_cr3 = 0x6000);
    assert_eq!(round(&mut m), 0);
}

#[test]
fn round_trips_are_fast() {
    for mode in MODES {
        let mut m = Machine::new(mode);
        let rounds = 20_000;
        let start = Instant::now();
        for _ in 0..rounds {
            m.enter().unwrap();
            m.leave(&VmExit::default());
        }
        let each = start.elapsed() / rounds;
        println!("{mode:?}: {each:?} a round trip");
        if !cfg!(debug_assertions) {
            assert!(each.as_micros() < 50, "{mode:?}: {each:?}");
        }
    }
}
