//! The secrets page: what the firmware tells an SNP guest alone.
//!
//! Source: SNP ABI, "SECRETS page"; GHCB specification, "Secrets page layout" for the OS area; Linux `asm/sev.h`.

/// Bytes of a VM platform communication key.
pub const VMPCK_LEN: usize = 32;

wire! {
    /// The part of the secrets page the guest's operating system may write.
    SecretsOsArea: 0x60, aligned {
        0x00 msg_seqno_0: u32, "Messages sent with VMPCK0, low half of the count.";
        0x04 msg_seqno_1: u32, "With VMPCK1.";
        0x08 msg_seqno_2: u32, "With VMPCK2.";
        0x0c msg_seqno_3: u32, "With VMPCK3.";
        0x10 ap_jump_table_pa: u64, "AP jump table.";
        0x18 reserved: [u8; 40], "Reserved.";
        0x40 guest_usage: [u8; 32], "For the guest.";
    }
}

wire! {
    /// The secrets page.
    SecretsPage: 0x1000, aligned {
        0x000 version: u32, "Layout version.";
        0x004 flags: u32, "Bit 0: launched through an initial migration image.";
        0x008 fms: u32, "Family, model and stepping.";
        0x00c reserved_00c: u32, "Zero.";
        0x010 gosvw: [u8; 16], "Guest OS visible workarounds.";
        0x020 vmpck0: [u8; VMPCK_LEN], "Communication key of VMPL0.";
        0x040 vmpck1: [u8; VMPCK_LEN], "Communication key of VMPL1.";
        0x060 vmpck2: [u8; VMPCK_LEN], "Communication key of VMPL2.";
        0x080 vmpck3: [u8; VMPCK_LEN], "Communication key of VMPL3.";
        0x0a0 os_area: SecretsOsArea, "For the operating system.";
        0x100 vmsa_tweak_bitmap: [u8; 64], "Register protection: which quadwords of the VMSA are tweaked.";
        0x140 svsm_base: u64, "SVSM: base.";
        0x148 svsm_size: u64, "SVSM: size.";
        0x150 svsm_caa: u64, "SVSM: calling area.";
        0x158 svsm_max_version: u32, "SVSM: highest protocol version.";
        0x15c svsm_guest_vmpl: u8, "SVSM: the guest's VMPL.";
        0x15d reserved_15d: [u8; 3], "Zero.";
        0x160 tsc_factor: u32, "Secure TSC: decrease from nominal to mean frequency, in 0.001 %.";
        0x164 reserved_164: [u8; 3740], "Zero.";
    }
}
