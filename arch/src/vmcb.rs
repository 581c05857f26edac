//! The virtual machine control block: control area and the save area of guests without encrypted state.
//!
//! Source: APM vol. 2, appendix B, tables B-1 and B-2; Linux `asm/svm.h`. The encrypted save area is in [`crate::vmsa`].

wire! {
    /// A segment register as the save areas hold it.
    Segment: 0x10, aligned {
        0x00 selector: u16, "Selector.";
        0x02 attributes: u16, "Attributes, see the `ATTR_` constants.";
        0x04 limit: u32, "Limit in bytes, already scaled by granularity.";
        0x08 base: u64, "Base.";
    }
}

impl Segment {
    /// Attribute bits 3:0: type. Bit 1 of a code segment: readable, of a data segment: writable.
    pub const ATTR_TYPE: u16 = 0xf;
    /// Attribute: type bit 3, a code segment.
    pub const ATTR_CODE: u16 = 1 << 3;
    /// Attribute: a code or data segment, not a system segment.
    pub const ATTR_S: u16 = 1 << 4;
    /// Attribute bits 6:5: descriptor privilege level.
    pub const ATTR_DPL_SHIFT: u32 = 5;
    /// Attribute: present.
    pub const ATTR_P: u16 = 1 << 7;
    /// Attribute: available to software.
    pub const ATTR_AVL: u16 = 1 << 8;
    /// Attribute: 64-bit code.
    pub const ATTR_L: u16 = 1 << 9;
    /// Attribute: default operand size.
    pub const ATTR_DB: u16 = 1 << 10;
    /// Attribute: granularity.
    pub const ATTR_G: u16 = 1 << 11;

    /// The descriptor privilege level in the attributes.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        ((self.attributes >> Self::ATTR_DPL_SHIFT) & 3) as u8
    }
}

wire! {
    /// The control area.
    Control: 0x400, aligned {
        0x000 intercept_cr: u32, "Bits 15:0 reads of CR0..CR15, bits 31:16 writes.";
        0x004 intercept_dr: u32, "Bits 15:0 reads of DR0..DR15, bits 31:16 writes.";
        0x008 intercept_exceptions: u32, "One bit a vector.";
        0x00c intercept_misc1: u32, "See [`Intercepts1`].";
        0x010 intercept_misc2: u32, "See [`Intercepts2`].";
        0x014 intercept_misc3: u32, "See [`Intercepts3`].";
        0x018 reserved_018: [u8; 36], "Must be zero.";
        0x03c pause_filter_threshold: u16, "PAUSE filter threshold.";
        0x03e pause_filter_count: u16, "PAUSE filter count.";
        0x040 iopm_base_pa: u64, "I/O permission map.";
        0x048 msrpm_base_pa: u64, "MSR permission map.";
        0x050 tsc_offset: u64, "Added to the guest's TSC.";
        0x058 asid: u32, "Guest ASID.";
        0x05c tlb_control: u8, "See the `TLB_` constants.";
        0x05d erap_control: u8, "Return address predictor control.";
        0x05e reserved_05e: [u8; 2], "Must be zero.";
        0x060 int_control: u32, "Virtual interrupt control, see the `V_` constants.";
        0x064 int_vector: u32, "Virtual interrupt vector, bits 7:0.";
        0x068 int_state: u64, "Bit 0: interrupt shadow; bit 1: the guest's interrupt mask (SEV-ES).";
        0x070 exit_code: u64, "A [`crate::exit::ExitCode`].";
        0x078 exit_info1: u64, "EXITINFO1.";
        0x080 exit_info2: u64, "EXITINFO2.";
        0x088 exit_int_info: u64, "An [`EventInjection`]: the event whose delivery was intercepted.";
        0x090 nested_control: u64, "See the `NESTED_` constants.";
        0x098 avic_apic_bar: u64, "AVIC: APIC base.";
        0x0a0 ghcb_gpa: u64, "The GHCB MSR: physical address of the GHCB, or a protocol value.";
        0x0a8 event_inj: u64, "An [`EventInjection`].";
        0x0b0 nested_cr3: u64, "nCR3.";
        0x0b8 lbr_control: u64, "Bit 0: LBR virtualisation; bit 1: virtual VMLOAD and VMSAVE.";
        0x0c0 clean: u32, "See [`Clean`].";
        0x0c4 reserved_0c4: u32, "Must be zero.";
        0x0c8 next_rip: u64, "nRIP.";
        0x0d0 insn_len: u8, "Number of instruction bytes fetched.";
        0x0d1 insn_bytes: [u8; 15], "Instruction bytes.";
        0x0e0 avic_backing_page: u64, "AVIC: APIC backing page.";
        0x0e8 reserved_0e8: u64, "Must be zero.";
        0x0f0 avic_logical_table: u64, "AVIC: logical table.";
        0x0f8 avic_physical_table: u64, "AVIC: physical table.";
        0x100 reserved_100: u64, "Must be zero.";
        0x108 vmsa_pa: u64, "The VMSA, for SEV-ES and SNP.";
        0x110 reserved_110: [u8; 16], "Must be zero.";
        0x120 bus_lock_counter: u16, "Bus lock threshold counter.";
        0x122 reserved_122: [u8; 22], "Must be zero.";
        0x138 allowed_sev_features: u64, "Bit 63: valid; else the VMSA's SEV features that are allowed.";
        0x140 guest_sev_features: u64, "Out: the guest's SEV features.";
        0x148 reserved_148: [u8; 664], "Must be zero.";
        0x3e0 software: [u8; 32], "For the hypervisor's use.";
    }
}

impl Control {
    /// `tlb_control`: do nothing.
    pub const TLB_NOTHING: u8 = 0;
    /// `tlb_control`: flush everything.
    pub const TLB_FLUSH_ALL: u8 = 1;
    /// `tlb_control`: flush the guest's entries.
    pub const TLB_FLUSH_ASID: u8 = 3;
    /// `tlb_control`: flush the guest's entries that are not global.
    pub const TLB_FLUSH_ASID_LOCAL: u8 = 7;

    /// `int_control`: virtual TPR.
    pub const V_TPR: u32 = 0xf;
    /// `int_control`: a virtual interrupt is pending.
    pub const V_IRQ: u32 = 1 << 8;
    /// `int_control`: virtual global interrupt flag.
    pub const V_GIF: u32 = 1 << 9;
    /// `int_control`: lowest bit of the virtual interrupt's priority.
    pub const V_INTR_PRIO_SHIFT: u32 = 16;
    /// `int_control`: ignore the virtual TPR.
    pub const V_IGN_TPR: u32 = 1 << 20;
    /// `int_control`: RFLAGS.IF masks virtual interrupts only.
    pub const V_INTR_MASKING: u32 = 1 << 24;
    /// `int_control`: AVIC enabled.
    pub const AVIC_ENABLE: u32 = 1 << 31;

    /// `int_state`: the guest is in an interrupt shadow.
    pub const INT_STATE_SHADOW: u64 = 1 << 0;
    /// `int_state`: the guest's interrupts are not masked (SEV-ES, out).
    pub const INT_STATE_GUEST_MASK: u64 = 1 << 1;

    /// `nested_control`: nested paging.
    pub const NESTED_PAGING: u64 = 1 << 0;
    /// `nested_control`: SEV.
    pub const NESTED_SEV: u64 = 1 << 1;
    /// `nested_control`: SEV-ES.
    pub const NESTED_SEV_ES: u64 = 1 << 2;
    /// `nested_control`: guest mode execute trap.
    pub const NESTED_GMET: u64 = 1 << 3;

    /// `lbr_control`: virtualise the last branch record.
    pub const LBR_VIRTUALISE: u64 = 1 << 0;
    /// `lbr_control`: virtual VMLOAD and VMSAVE.
    pub const VIRTUAL_VMLOAD_VMSAVE: u64 = 1 << 1;

    /// `allowed_sev_features`: the field is valid.
    pub const ALLOWED_SEV_FEATURES_VALID: u64 = 1 << 63;
}

wire! {
    /// The save area of guests without encrypted state, at offset 0x400 of the VMCB.
    Save: 0xc00, aligned {
        0x000 es: Segment, "ES.";
        0x010 cs: Segment, "CS.";
        0x020 ss: Segment, "SS.";
        0x030 ds: Segment, "DS.";
        0x040 fs: Segment, "FS.";
        0x050 gs: Segment, "GS.";
        0x060 gdtr: Segment, "GDTR.";
        0x070 ldtr: Segment, "LDTR.";
        0x080 idtr: Segment, "IDTR.";
        0x090 tr: Segment, "TR.";
        0x0a0 reserved_0a0: [u8; 42], "Reserved.";
        0x0ca vmpl: u8, "VMPL.";
        0x0cb cpl: u8, "CPL.";
        0x0cc reserved_0cc: [u8; 4], "Reserved.";
        0x0d0 efer: u64, "EFER.";
        0x0d8 reserved_0d8: [u8; 112], "Reserved.";
        0x148 cr4: u64, "CR4.";
        0x150 cr3: u64, "CR3.";
        0x158 cr0: u64, "CR0.";
        0x160 dr7: u64, "DR7.";
        0x168 dr6: u64, "DR6.";
        0x170 rflags: u64, "RFLAGS.";
        0x178 rip: u64, "RIP.";
        0x180 reserved_180: [u8; 88], "Reserved.";
        0x1d8 rsp: u64, "RSP.";
        0x1e0 s_cet: u64, "S_CET.";
        0x1e8 ssp: u64, "SSP.";
        0x1f0 isst_addr: u64, "Interrupt shadow stack table.";
        0x1f8 rax: u64, "RAX.";
        0x200 star: u64, "STAR.";
        0x208 lstar: u64, "LSTAR.";
        0x210 cstar: u64, "CSTAR.";
        0x218 sfmask: u64, "SFMASK.";
        0x220 kernel_gs_base: u64, "KernelGSBase.";
        0x228 sysenter_cs: u64, "SYSENTER_CS.";
        0x230 sysenter_esp: u64, "SYSENTER_ESP.";
        0x238 sysenter_eip: u64, "SYSENTER_EIP.";
        0x240 cr2: u64, "CR2.";
        0x248 reserved_248: [u8; 32], "Reserved.";
        0x268 g_pat: u64, "Guest PAT.";
        0x270 dbgctl: u64, "DebugCtl.";
        0x278 br_from: u64, "Last branch from.";
        0x280 br_to: u64, "Last branch to.";
        0x288 last_excp_from: u64, "Last exception from.";
        0x290 last_excp_to: u64, "Last exception to.";
        0x298 reserved_298: [u8; 72], "Reserved.";
        0x2e0 spec_ctrl: u64, "SPEC_CTRL.";
        0x2e8 reserved_2e8: [u8; 2328], "Reserved.";
    }
}

wire! {
    /// A whole VMCB, one page.
    Vmcb: 0x1000, aligned {
        0x000 control: Control, "Control area.";
        0x400 save: Save, "Save area; unused by guests with encrypted state.";
    }
}

bitflags::bitflags! {
    /// `clean`: parts of the VMCB the processor may take from its cache (APM vol. 2, 15.15.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset, pause filter.
        const I = 1 << 0;
        /// I/O and MSR permission maps.
        const IOPM = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// Virtual interrupt state.
        const TPR = 1 << 3;
        /// Nested paging.
        const NP = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CRX = 1 << 5;
        /// DR6, DR7.
        const DRX = 1 << 6;
        /// GDTR and IDTR.
        const DT = 1 << 7;
        /// CS, DS, SS, ES and CPL.
        const SEG = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Last branch record.
        const LBR = 1 << 10;
        /// AVIC.
        const AVIC = 1 << 11;
        /// Shadow stack state.
        const CET = 1 << 12;
    }
}

bitflags::bitflags! {
    /// `intercept_misc1`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Intercepts1: u32 {
        /// Physical interrupts.
        const INTR = 1 << 0;
        /// NMI.
        const NMI = 1 << 1;
        /// SMI.
        const SMI = 1 << 2;
        /// INIT.
        const INIT = 1 << 3;
        /// Virtual interrupts.
        const VINTR = 1 << 4;
        /// Writes of CR0 that change more than TS or MP.
        const CR0_SEL_WRITE = 1 << 5;
        /// Reads of IDTR.
        const IDTR_READ = 1 << 6;
        /// Reads of GDTR.
        const GDTR_READ = 1 << 7;
        /// Reads of LDTR.
        const LDTR_READ = 1 << 8;
        /// Reads of TR.
        const TR_READ = 1 << 9;
        /// Writes of IDTR.
        const IDTR_WRITE = 1 << 10;
        /// Writes of GDTR.
        const GDTR_WRITE = 1 << 11;
        /// Writes of LDTR.
        const LDTR_WRITE = 1 << 12;
        /// Writes of TR.
        const TR_WRITE = 1 << 13;
        /// RDTSC.
        const RDTSC = 1 << 14;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// PUSHF.
        const PUSHF = 1 << 16;
        /// POPF.
        const POPF = 1 << 17;
        /// CPUID.
        const CPUID = 1 << 18;
        /// RSM.
        const RSM = 1 << 19;
        /// IRET.
        const IRET = 1 << 20;
        /// INT n.
        const SWINT = 1 << 21;
        /// INVD.
        const INVD = 1 << 22;
        /// PAUSE.
        const PAUSE = 1 << 23;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPG.
        const INVLPG = 1 << 25;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Ports the I/O permission map names.
        const IOIO = 1 << 27;
        /// Registers the MSR permission map names.
        const MSR = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// FERR freezes.
        const FERR_FREEZE = 1 << 30;
        /// Shutdown.
        const SHUTDOWN = 1 << 31;
    }
}

bitflags::bitflags! {
    /// `intercept_misc2`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Intercepts2: u32 {
        /// VMRUN; must be set.
        const VMRUN = 1 << 0;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// RDTSCP.
        const RDTSCP = 1 << 7;
        /// INT1.
        const ICEBP = 1 << 8;
        /// WBINVD.
        const WBINVD = 1 << 9;
        /// MONITOR.
        const MONITOR = 1 << 10;
        /// MWAIT.
        const MWAIT = 1 << 11;
        /// MWAIT, if armed.
        const MWAIT_COND = 1 << 12;
        /// XSETBV.
        const XSETBV = 1 << 13;
        /// RDPRU.
        const RDPRU = 1 << 14;
        /// Trap after a write of EFER.
        const EFER_WRITE_TRAP = 1 << 15;
        /// Traps after writes of CR0..CR15.
        const CR_WRITE_TRAPS = 0xffff_0000;
    }
}

bitflags::bitflags! {
    /// `intercept_misc3`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Intercepts3: u32 {
        /// INVLPGB.
        const INVLPGB = 1 << 0;
        /// Illegal INVLPGB.
        const INVLPGB_ILLEGAL = 1 << 1;
        /// INVPCID.
        const INVPCID = 1 << 2;
        /// MCOMMIT.
        const MCOMMIT = 1 << 3;
        /// TLBSYNC.
        const TLBSYNC = 1 << 4;
        /// Bus locks.
        const BUSLOCK = 1 << 5;
        /// HLT without a pending virtual interrupt.
        const IDLE_HLT = 1 << 6;
    }
}

/// An event to inject, or one whose delivery was interrupted (APM vol. 2, 15.20). Also what the GHCB protocol returns
/// when the guest is to raise an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct EventInjection(pub u64);

open_enum! {
    /// The kind of an [`EventInjection`].
    EventType(u8) {
        INTR = 0, "External interrupt.";
        NMI = 2, "NMI.";
        EXCEPTION = 3, "Exception.";
        SOFTWARE = 4, "Software interrupt.";
    }
}

impl EventInjection {
    /// An error code is to be pushed.
    pub const ERROR_VALID: u64 = 1 << 11;
    /// There is an event.
    pub const VALID: u64 = 1 << 31;

    /// An exception.
    #[must_use]
    pub const fn exception(vector: u8, error: Option<u32>) -> Self {
        let base = vector as u64 | (EventType::EXCEPTION.0 as u64) << 8 | Self::VALID;
        Self(match error {
            Some(code) => base | Self::ERROR_VALID | (code as u64) << 32,
            None => base,
        })
    }

    /// An external interrupt.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Self {
        Self(vector as u64 | (EventType::INTR.0 as u64) << 8 | Self::VALID)
    }

    /// Whether there is an event.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// The vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The kind of event.
    #[must_use]
    pub const fn event_type(self) -> EventType {
        EventType(((self.0 >> 8) & 7) as u8)
    }

    /// The error code, if one is to be pushed.
    #[must_use]
    pub const fn error(self) -> Option<u32> {
        if self.0 & Self::ERROR_VALID != 0 {
            Some((self.0 >> 32) as u32)
        } else {
            None
        }
    }
}

/// EXITINFO1 of an I/O intercept (APM vol. 2, 15.10.2), also of the GHCB's I/O event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct IoInfo(pub u64);

impl IoInfo {
    /// IN, not OUT.
    pub const IN: u64 = 1 << 0;
    /// String instruction.
    pub const STRING: u64 = 1 << 2;
    /// REP prefix.
    pub const REP: u64 = 1 << 3;
    /// One byte.
    pub const SIZE_8: u64 = 1 << 4;
    /// Two bytes.
    pub const SIZE_16: u64 = 1 << 5;
    /// Four bytes.
    pub const SIZE_32: u64 = 1 << 6;
    /// 16-bit addresses.
    pub const ADDR_16: u64 = 1 << 7;
    /// 32-bit addresses.
    pub const ADDR_32: u64 = 1 << 8;
    /// 64-bit addresses.
    pub const ADDR_64: u64 = 1 << 9;
    /// Bits 12:10: segment of a string instruction.
    pub const SEGMENT_SHIFT: u32 = 10;
    /// Bits 31:16: port.
    pub const PORT_SHIFT: u32 = 16;
}
