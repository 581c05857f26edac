//! SNP launch measurement, attestation report and guest messages.
//!
//! Source: SNP ABI (AMD 56860), "Launch measurement", "ATTESTATION_REPORT", "Guest messages".

pub use crate::psp::SnpPageType;

/// Bytes of a launch digest, SHA-384.
pub const LD_LEN: usize = 48;
/// Guest physical address a VMSA is measured at.
pub const VMSA_GPA: u64 = 0xffff_ffff_f000;

wire! {
    /// PAGE_INFO: what one step of the launch digest hashes.
    PageInfo: 0x70, aligned {
        0x00 digest_cur: [u8; LD_LEN], "Digest so far.";
        0x30 contents: [u8; LD_LEN], "SHA-384 of the page, or zeros.";
        0x60 length: u16, "0x70.";
        0x62 page_type: u8, "A [`SnpPageType`].";
        0x63 imi_page: u8, "1: part of the initial migration image.";
        0x64 vmpl3_perms: u8, "Permissions of VMPL3.";
        0x65 vmpl2_perms: u8, "Permissions of VMPL2.";
        0x66 vmpl1_perms: u8, "Permissions of VMPL1.";
        0x67 reserved: u8, "Zero.";
        0x68 gpa: u64, "Guest physical address.";
    }
}

/// Bytes of the report that are signed.
pub const REPORT_SIGNED_LEN: usize = 0x2a0;

wire! {
    /// The attestation report.
    AttestationReport: 0x4a0, aligned {
        0x000 version: u32, "2, 3 or 5.";
        0x004 guest_svn: u32, "From the identity block.";
        0x008 policy: u64, "Guest policy.";
        0x010 family_id: [u8; 16], "From the identity block.";
        0x020 image_id: [u8; 16], "From the identity block.";
        0x030 vmpl: u32, "VMPL of the request.";
        0x034 signature_algo: u32, "1: ECDSA P-384 with SHA-384.";
        0x038 current_tcb: u64, "Current TCB.";
        0x040 platform_info: u64, "See the `PLATFORM_` constants.";
        0x048 key_info: u32, "Bit 0 author key, bit 1 chip key masked, bits 4:2 signing key (0 VCEK, 1 VLEK, 7 none).";
        0x04c reserved_04c: u32, "Zero.";
        0x050 report_data: [u8; 64], "From the guest.";
        0x090 measurement: [u8; LD_LEN], "Launch digest.";
        0x0c0 host_data: [u8; 32], "From SNP_LAUNCH_FINISH.";
        0x0e0 id_key_digest: [u8; 48], "SHA-384 of the identity key.";
        0x110 author_key_digest: [u8; 48], "SHA-384 of the author key.";
        0x140 report_id: [u8; 32], "This guest.";
        0x160 report_id_ma: [u8; 32], "Its migration agent; ones if none.";
        0x180 reported_tcb: u64, "TCB the signing key is derived from.";
        0x188 cpuid_family: u8, "Version 3 on: family.";
        0x189 cpuid_model: u8, "Version 3 on: model.";
        0x18a cpuid_stepping: u8, "Version 3 on: stepping.";
        0x18b reserved_18b: [u8; 21], "Zero.";
        0x1a0 chip_id: [u8; 64], "The chip, or zero.";
        0x1e0 committed_tcb: u64, "Committed TCB.";
        0x1e8 current_build: u8, "Firmware build.";
        0x1e9 current_minor: u8, "Firmware minor version.";
        0x1ea current_major: u8, "Firmware major version.";
        0x1eb reserved_1eb: u8, "Zero.";
        0x1ec committed_build: u8, "Committed build.";
        0x1ed committed_minor: u8, "Committed minor version.";
        0x1ee committed_major: u8, "Committed major version.";
        0x1ef reserved_1ef: u8, "Zero.";
        0x1f0 launch_tcb: u64, "TCB at launch.";
        0x1f8 launch_mit_vector: u64, "Version 5 on: mitigations at launch.";
        0x200 current_mit_vector: u64, "Version 5 on: mitigations now.";
        0x208 reserved_208: [u8; 152], "Zero.";
        0x2a0 signature_r: [u8; 72], "R, little-endian.";
        0x2e8 signature_s: [u8; 72], "S, little-endian.";
        0x330 reserved_330: [u8; 368], "Zero.";
    }
}

impl AttestationReport {
    /// `platform_info`: SMT is on.
    pub const PLATFORM_SMT_EN: u64 = 1 << 0;
    /// `platform_info`: transparent SME is on.
    pub const PLATFORM_TSME_EN: u64 = 1 << 1;
    /// `platform_info`: memory has ECC.
    pub const PLATFORM_ECC_EN: u64 = 1 << 2;
    /// `platform_info`: running average power limit is off.
    pub const PLATFORM_RAPL_DIS: u64 = 1 << 3;
    /// `platform_info`: ciphertext hiding is on.
    pub const PLATFORM_CIPHERTEXT_HIDING_EN: u64 = 1 << 4;
    /// `platform_info`: the alias check has completed.
    pub const PLATFORM_ALIAS_CHECK_COMPLETE: u64 = 1 << 5;
    /// `signature_algo`: ECDSA P-384 with SHA-384.
    pub const SIGNATURE_ECDSA_P384_SHA384: u32 = 1;
}

wire! {
    /// Body of a report request.
    ReportRequest: 0x60, aligned {
        0x00 report_data: [u8; 64], "Copied into the report.";
        0x40 vmpl: u32, "VMPL to put into the report.";
        0x44 key_sel: u32, "Bits 1:0: 0 VLEK if loaded else VCEK, 1 VCEK, 2 VLEK.";
        0x48 reserved: [u8; 24], "Must be zero.";
    }
}

wire! {
    /// Head of a report response; the report follows.
    ReportResponse: 0x20, aligned {
        0x00 status: u32, "0, or 0x16 for an invalid parameter.";
        0x04 report_size: u32, "Bytes that follow.";
        0x08 reserved: [u8; 24], "Zero.";
    }
}

wire! {
    /// Body of a key request.
    KeyRequest: 0x20, aligned {
        0x00 key_select: u32, "Bit 0: root key (0 VCEK or VLEK, 1 VMRK); bits 2:1 which of the former.";
        0x04 reserved: u32, "Must be zero.";
        0x08 guest_field_select: u64, "What is mixed in: bit 0 policy, 1 image, 2 family, 3 measurement, 4 SVN, 5 TCB.";
        0x10 vmpl: u32, "VMPL to mix in.";
        0x14 guest_svn: u32, "SVN to mix in, at most the guest's.";
        0x18 tcb_version: u64, "TCB to mix in, at most the committed one.";
    }
}

wire! {
    /// Body of a key response.
    KeyResponse: 0x40, aligned {
        0x00 status: u32, "0, or 0x16 for an invalid parameter.";
        0x04 reserved: [u8; 28], "Zero.";
        0x20 derived_key: [u8; 32], "The key.";
    }
}

open_enum! {
    /// Type of a guest message.
    MessageType(u8) {
        CPUID_REQ = 1, "Check a CPUID table.";
        CPUID_RSP = 2, "The corrected table.";
        KEY_REQ = 3, "Derive a key.";
        KEY_RSP = 4, "The key.";
        REPORT_REQ = 5, "Attest.";
        REPORT_RSP = 6, "The report.";
        EXPORT_REQ = 7, "Export a guest context.";
        EXPORT_RSP = 8, "The context.";
        IMPORT_REQ = 9, "Import a guest context.";
        IMPORT_RSP = 10, "Done.";
        ABSORB_REQ = 11, "Absorb a migration image.";
        ABSORB_RSP = 12, "Done.";
        VMRK_REQ = 13, "Set the VM root key.";
        VMRK_RSP = 14, "Done.";
        TSC_INFO_REQ = 17, "Secure TSC parameters.";
        TSC_INFO_RSP = 18, "The parameters.";
    }
}

wire! {
    /// Header of a guest message; the encrypted payload follows.
    MessageHeader: 0x60, aligned {
        0x00 authtag: [u8; 32], "Authentication tag, 16 bytes used.";
        0x20 msg_seqno: u64, "Sequence number.";
        0x28 reserved_28: u64, "Must be zero.";
        0x30 algo: u8, "1: AES-256-GCM.";
        0x31 hdr_version: u8, "1.";
        0x32 hdr_size: u16, "0x60.";
        0x34 msg_type: u8, "A [`MessageType`].";
        0x35 msg_version: u8, "1.";
        0x36 msg_size: u16, "Bytes of payload.";
        0x38 reserved_38: u32, "Must be zero.";
        0x3c msg_vmpck: u8, "Number of the key.";
        0x3d reserved_3d: [u8; 35], "Must be zero.";
    }
}

impl MessageHeader {
    /// `algo`: AES-256-GCM.
    pub const ALGO_AES_256_GCM: u8 = 1;
    /// `hdr_version`.
    pub const VERSION: u8 = 1;
    /// First byte of the header that is authenticated as additional data; it reaches to the header's end.
    pub const AAD_START: usize = 0x30;
    /// Bytes of the authentication tag in use.
    pub const AUTHTAG_LEN: usize = 16;
}

/// A TCB version's bytes on Milan and Genoa.
#[must_use]
pub const fn tcb_milan(boot_loader: u8, tee: u8, snp: u8, microcode: u8) -> u64 {
    u64::from_le_bytes([boot_loader, tee, 0, 0, 0, 0, snp, microcode])
}

/// A TCB version's bytes on Turin.
#[must_use]
pub const fn tcb_turin(fmc: u8, boot_loader: u8, tee: u8, snp: u8, microcode: u8) -> u64 {
    u64::from_le_bytes([fmc, boot_loader, tee, snp, 0, 0, 0, microcode])
}
