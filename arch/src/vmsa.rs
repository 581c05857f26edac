//! The encrypted save area of SEV-ES and SNP guests.
//!
//! Source: APM vol. 2, appendix B, table B-4; Linux `asm/svm.h` (`sev_es_save_area`). It starts a page of its own; the
//! rest of the page is zero in a launch.

use crate::vmcb::Segment;

wire! {
    /// The VMSA: the part of the page the processor uses.
    Vmsa: 0x670, aligned {
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
        0x0a0 pl0_ssp: u64, "PL0_SSP.";
        0x0a8 pl1_ssp: u64, "PL1_SSP.";
        0x0b0 pl2_ssp: u64, "PL2_SSP.";
        0x0b8 pl3_ssp: u64, "PL3_SSP.";
        0x0c0 u_cet: u64, "U_CET.";
        0x0c8 reserved_0c8: [u8; 2], "Reserved.";
        0x0ca vmpl: u8, "VMPL.";
        0x0cb cpl: u8, "CPL.";
        0x0cc reserved_0cc: [u8; 4], "Reserved.";
        0x0d0 efer: u64, "EFER.";
        0x0d8 reserved_0d8: [u8; 104], "Reserved.";
        0x140 xss: u64, "XSS.";
        0x148 cr4: u64, "CR4.";
        0x150 cr3: u64, "CR3.";
        0x158 cr0: u64, "CR0.";
        0x160 dr7: u64, "DR7.";
        0x168 dr6: u64, "DR6.";
        0x170 rflags: u64, "RFLAGS.";
        0x178 rip: u64, "RIP.";
        0x180 dr0: u64, "DR0.";
        0x188 dr1: u64, "DR1.";
        0x190 dr2: u64, "DR2.";
        0x198 dr3: u64, "DR3.";
        0x1a0 dr0_addr_mask: u64, "DR0 address mask.";
        0x1a8 dr1_addr_mask: u64, "DR1 address mask.";
        0x1b0 dr2_addr_mask: u64, "DR2 address mask.";
        0x1b8 dr3_addr_mask: u64, "DR3 address mask.";
        0x1c0 reserved_1c0: [u8; 24], "Reserved.";
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
        0x298 reserved_298: [u8; 80], "Reserved.";
        0x2e8 pkru: u32, "PKRU.";
        0x2ec tsc_aux: u32, "TSC_AUX.";
        0x2f0 tsc_scale: u64, "Guest TSC scale, with Secure TSC.";
        0x2f8 tsc_offset: u64, "Guest TSC offset, with Secure TSC.";
        0x300 reg_prot_nonce: u64, "Register protection nonce.";
        0x308 rcx: u64, "RCX.";
        0x310 rdx: u64, "RDX.";
        0x318 rbx: u64, "RBX.";
        0x320 reserved_320: u64, "Reserved; RSP is at 0x1d8.";
        0x328 rbp: u64, "RBP.";
        0x330 rsi: u64, "RSI.";
        0x338 rdi: u64, "RDI.";
        0x340 r8: u64, "R8.";
        0x348 r9: u64, "R9.";
        0x350 r10: u64, "R10.";
        0x358 r11: u64, "R11.";
        0x360 r12: u64, "R12.";
        0x368 r13: u64, "R13.";
        0x370 r14: u64, "R14.";
        0x378 r15: u64, "R15.";
        0x380 reserved_380: [u8; 16], "Reserved.";
        0x390 guest_exit_info1: u64, "EXITINFO1 as the guest sees it.";
        0x398 guest_exit_info2: u64, "EXITINFO2 as the guest sees it.";
        0x3a0 guest_exit_int_info: u64, "EXITINTINFO as the guest sees it.";
        0x3a8 guest_nrip: u64, "nRIP as the guest sees it.";
        0x3b0 sev_features: u64, "See [`SevFeatures`].";
        0x3b8 vintr_ctrl: u64, "Virtual interrupt control, with alternate injection.";
        0x3c0 guest_exit_code: u64, "Exit code as the guest sees it.";
        0x3c8 virtual_tom: u64, "Virtual top of memory.";
        0x3d0 tlb_id: u64, "For the processor's use.";
        0x3d8 pcpu_id: u64, "For the processor's use.";
        0x3e0 event_inj: u64, "A [`crate::vmcb::EventInjection`], with alternate injection.";
        0x3e8 xcr0: u64, "XCR0.";
        0x3f0 reserved_3f0: [u8; 16], "Reserved.";
        0x400 x87_dp: u64, "x87 data pointer.";
        0x408 mxcsr: u32, "MXCSR.";
        0x40c x87_ftw: u16, "x87 tag word, full form.";
        0x40e x87_fsw: u16, "x87 status word.";
        0x410 x87_fcw: u16, "x87 control word.";
        0x412 x87_fop: u16, "x87 opcode.";
        0x414 x87_ds: u16, "x87 data segment.";
        0x416 x87_cs: u16, "x87 code segment.";
        0x418 x87_rip: u64, "x87 instruction pointer.";
        0x420 fpreg_x87: [u8; 80], "Eight x87 registers, 10 bytes each.";
        0x470 fpreg_xmm: [u8; 256], "Lower halves of YMM0..YMM15.";
        0x570 fpreg_ymm: [u8; 256], "Upper halves of YMM0..YMM15.";
    }
}

bitflags::bitflags! {
    /// `sev_features` (APM vol. 2, table B-4). SEV_STATUS shows them to the guest two bits higher.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SevFeatures: u64 {
        /// SNP is active.
        const SNP_ACTIVE = 1 << 0;
        /// Virtual top of memory.
        const VTOM = 1 << 1;
        /// #VC reflects to a more privileged VMPL.
        const REFLECT_VC = 1 << 2;
        /// Restricted injection.
        const RESTRICTED_INJECTION = 1 << 3;
        /// Alternate injection.
        const ALTERNATE_INJECTION = 1 << 4;
        /// Debug registers are swapped.
        const DEBUG_SWAP = 1 << 5;
        /// The host's IBS is off while the guest runs.
        const PREVENT_HOST_IBS = 1 << 6;
        /// The branch target buffer is isolated.
        const BTB_ISOLATION = 1 << 7;
        /// Supervisor shadow stack permissions by VMPL.
        const VMPL_SSS = 1 << 8;
        /// Secure TSC.
        const SECURE_TSC = 1 << 9;
        /// VMGEXIT parameter.
        const VMGEXIT_PARAMETER = 1 << 10;
        /// IBS virtualisation.
        const IBS_VIRTUALISATION = 1 << 12;
        /// VMSA register protection.
        const VMSA_REG_PROT = 1 << 14;
        /// SMT protection.
        const SMT_PROTECTION = 1 << 15;
        /// IBPB on entry.
        const IBPB_ON_ENTRY = 1 << 21;
    }
}

impl SevFeatures {
    /// SEV_STATUS bit = feature bit + this.
    pub const SEV_STATUS_SHIFT: u32 = 2;
}
