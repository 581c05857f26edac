//! Command buffers and data blocks of the SNP commands.

wire! {
    /// The buffer of every SNP command that takes one address: SNP_GCTX_CREATE and SNP_DECOMMISSION (a guest context
    /// page), SNP_PLATFORM_STATUS (where the [`SnpPlatformStatus`] goes).
    SnpAddress: 0x08, packed {
        0x00 address: u64, "In: system physical address.";
    }
}

/// SNP_GCTX_CREATE.
pub type SnpGctxCreate = SnpAddress;
/// SNP_DECOMMISSION.
pub type SnpDecommission = SnpAddress;

wire! {
    /// SNP_INIT_EX.
    SnpInitEx: 0x40, packed {
        0x00 flags: u32, "In: see the `FLAG_` constants.";
        0x04 reserved1: u32, "Must be zero.";
        0x08 list_paddr: u64, "In: list of ranges to make HV-fixed.";
        0x10 max_snp_asid: u16, "In: the highest SNP ASID, with ciphertext hiding.";
        0x12 reserved2: [u8; 46], "Must be zero.";
    }
}

impl SnpInitEx {
    /// `flags`: initialise the RMP.
    pub const FLAG_INIT_RMP: u32 = 1 << 0;
    /// `flags`: `list_paddr` is valid.
    pub const FLAG_LIST_PADDR_EN: u32 = 1 << 1;
    /// `flags`: disable the running average power limit.
    pub const FLAG_RAPL_DIS: u32 = 1 << 2;
    /// `flags`: enable ciphertext hiding.
    pub const FLAG_CIPHERTEXT_HIDING_EN: u32 = 1 << 3;
    /// `flags`: enable trusted I/O.
    pub const FLAG_TIO_EN: u32 = 1 << 4;
}

wire! {
    /// One element of SNP_INIT_EX's list, which starts with a count u32 and four reserved bytes.
    SnpRange: 0x10, packed {
        0x00 base: u64, "First byte of the range.";
        0x08 page_count: u32, "Number of 4 KiB pages.";
        0x0c reserved: u32, "Must be zero.";
    }
}

wire! {
    /// SNP_SHUTDOWN_EX.
    SnpShutdownEx: 0x08, packed {
        0x00 length: u32, "In: length of this buffer.";
        0x04 flags: u32, "In: bit 0 also end enforcement in the IOMMU, bit 1 disable SNP on all cores.";
    }
}

wire! {
    /// What SNP_PLATFORM_STATUS writes.
    SnpPlatformStatus: 0x20, packed {
        0x00 api_major: u8, "ABI version, major.";
        0x01 api_minor: u8, "ABI version, minor.";
        0x02 state: u8, "0 uninitialised, 1 initialised.";
        0x03 is_rmp_init: u8, "Bit 0: the RMP is initialised.";
        0x04 build_id: u32, "Firmware build.";
        0x08 flags: u32, "See the `FLAG_` constants.";
        0x0c guest_count: u32, "Number of guest contexts.";
        0x10 current_tcb: u64, "TCB version installed.";
        0x18 reported_tcb: u64, "TCB version reported.";
    }
}

impl SnpPlatformStatus {
    /// `flags`: the chip identifier is zero in reports.
    pub const FLAG_MASK_CHIP_ID: u32 = 1 << 0;
    /// `flags`: reports are not signed with the chip's key.
    pub const FLAG_MASK_CHIP_KEY: u32 = 1 << 1;
    /// `flags`: a VLEK is loaded.
    pub const FLAG_VLEK_EN: u32 = 1 << 2;
    /// `flags`: SNP_FEATURE_INFO is supported.
    pub const FLAG_FEATURE_INFO: u32 = 1 << 3;
    /// `flags`: running average power limit is off.
    pub const FLAG_RAPL_DIS: u32 = 1 << 4;
    /// `flags`: ciphertext hiding is supported.
    pub const FLAG_CIPHERTEXT_HIDING_CAP: u32 = 1 << 5;
    /// `flags`: ciphertext hiding is on.
    pub const FLAG_CIPHERTEXT_HIDING_EN: u32 = 1 << 6;
}

wire! {
    /// SNP_CONFIG.
    SnpConfig: 0x40, packed {
        0x00 reported_tcb: u64, "In: TCB version to report, 0 to reset it.";
        0x08 flags: u32, "In: bit 0 mask the chip identifier, bit 1 mask the chip's key.";
        0x0c reserved: [u8; 52], "Must be zero.";
    }
}

wire! {
    /// SNP_COMMIT.
    SnpCommit: 0x04, packed {
        0x00 length: u32, "In: length of this buffer.";
    }
}

wire! {
    /// SNP_ACTIVATE.
    SnpActivate: 0x0c, packed {
        0x00 gctx_paddr: u64, "In: guest context page.";
        0x08 asid: u32, "In: ASID to bind to the guest.";
    }
}

wire! {
    /// SNP_LAUNCH_START.
    SnpLaunchStart: 0x30, packed {
        0x00 gctx_paddr: u64, "In: guest context page.";
        0x08 policy: u64, "In: see [`super::SnpPolicy`].";
        0x10 ma_gctx_paddr: u64, "In: the migration agent's context page.";
        0x18 flags: u32, "In: bit 0 there is a migration agent, bit 1 this is an initial migration image.";
        0x1c desired_tsc_khz: u32, "In: mean TSC frequency wanted, with Secure TSC.";
        0x20 gosvw: [u8; 16], "In: guest OS visible workarounds.";
    }
}

impl SnpLaunchStart {
    /// `flags`: the guest is associated with a migration agent.
    pub const FLAG_MA_EN: u32 = 1 << 0;
    /// `flags`: an initial migration image is launched.
    pub const FLAG_IMI_EN: u32 = 1 << 1;
}

wire! {
    /// SNP_LAUNCH_UPDATE.
    SnpLaunchUpdate: 0x20, packed {
        0x00 gctx_paddr: u64, "In: guest context page.";
        0x08 page: u32, "In: bit 0 the size (1: 2 MiB), bits 3:1 the type, bit 4 part of the migration image.";
        0x0c reserved2: u32, "Must be zero.";
        0x10 address: u64, "In: the page to insert.";
        0x18 reserved3: u8, "Must be zero.";
        0x19 vmpl1_perms: u8, "In: permissions of VMPL1.";
        0x1a vmpl2_perms: u8, "In: permissions of VMPL2.";
        0x1b vmpl3_perms: u8, "In: permissions of VMPL3.";
        0x1c reserved4: u32, "Must be zero.";
    }
}

impl SnpLaunchUpdate {
    /// `page`: the page is 2 MiB.
    pub const PAGE_2M: u32 = 1 << 0;
    /// `page`: lowest bit of the page type, a [`SnpPageType`].
    pub const PAGE_TYPE_SHIFT: u32 = 1;
    /// `page`: the page type, once shifted down.
    pub const PAGE_TYPE_MASK: u32 = 7;
    /// `page`: the page is part of the initial migration image.
    pub const PAGE_IMI: u32 = 1 << 4;

    /// The page type in `page`.
    #[must_use]
    pub const fn page_type(&self) -> SnpPageType {
        SnpPageType(((self.page >> Self::PAGE_TYPE_SHIFT) & Self::PAGE_TYPE_MASK) as u8)
    }

    /// Whether `page` says 2 MiB.
    #[must_use]
    pub const fn is_2m(&self) -> bool {
        self.page & Self::PAGE_2M != 0
    }

    /// Whether `page` says that the page belongs to the initial migration image.
    #[must_use]
    pub const fn is_imi(&self) -> bool {
        self.page & Self::PAGE_IMI != 0
    }
}

open_enum! {
    /// What kind of page a launch inserts; it decides what is measured.
    SnpPageType(u8) {
        NORMAL = 1, "Contents are measured.";
        VMSA = 2, "A save area; contents are measured.";
        ZERO = 3, "The firmware zeroes the page; measured as zeros.";
        UNMEASURED = 4, "Contents are kept but not measured.";
        SECRETS = 5, "The firmware writes the secrets page.";
        CPUID = 6, "The firmware checks the CPUID page.";
    }
}

wire! {
    /// SNP_LAUNCH_FINISH.
    SnpLaunchFinish: 0x40, packed {
        0x00 gctx_paddr: u64, "In: guest context page.";
        0x08 id_block_paddr: u64, "In: the [`IdBlock`].";
        0x10 id_auth_paddr: u64, "In: the [`IdAuth`].";
        0x18 flags: u64, "In: see the `FLAG_` constants; the other bits must be zero.";
        0x20 host_data: [u8; 32], "In: copied into attestation reports.";
    }
}

impl SnpLaunchFinish {
    /// `flags`: there is an identity block.
    pub const FLAG_ID_BLOCK_EN: u64 = 1 << 0;
    /// `flags`: the authentication structure holds an author key.
    pub const FLAG_AUTH_KEY_EN: u64 = 1 << 1;
    /// `flags`: reports may not be signed with the VCEK.
    pub const FLAG_VCEK_DISABLED: u64 = 1 << 2;
}

wire! {
    /// SNP_GUEST_STATUS.
    SnpGuestStatus: 0x10, packed {
        0x00 gctx_paddr: u64, "In: guest context page.";
        0x08 address: u64, "In: where the [`SnpGuestStatusPage`] goes.";
    }
}

wire! {
    /// SNP_GUEST_REQUEST.
    SnpGuestRequest: 0x18, packed {
        0x00 gctx_paddr: u64, "In: guest context page.";
        0x08 req_paddr: u64, "In: page of the request message.";
        0x10 res_paddr: u64, "In: page of the response message.";
    }
}

wire! {
    /// SNP_PAGE_RECLAIM and SNP_PAGE_UNSMASH.
    SnpPageReclaim: 0x08, packed {
        0x00 paddr: u64, "In: the page; bit 0 is its size (1: 2 MiB).";
    }
}

wire! {
    /// SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT.
    SnpDbg: 0x18, packed {
        0x00 gctx_paddr: u64, "In: guest context page.";
        0x08 src_address: u64, "In: page to read.";
        0x10 dst_address: u64, "In: page to write.";
    }
}

wire! {
    /// SNP_FEATURE_INFO.
    SnpFeatureInfo: 0x10, packed {
        0x00 length: u32, "In: length of this buffer.";
        0x04 ecx_in: u32, "In: sub-function.";
        0x08 feature_info_paddr: u64, "In: where EAX, EBX, ECX and EDX go, 16 bytes.";
    }
}

wire! {
    /// The identity block: what the owner expects of a launch (SNP ABI, "ID block").
    IdBlock: 0x60, packed {
        0x00 ld: [u8; 48], "Expected launch digest.";
        0x30 family_id: [u8; 16], "Family, for the owner's use.";
        0x40 image_id: [u8; 16], "Image, for the owner's use.";
        0x50 version: u32, "1.";
        0x54 guest_svn: u32, "The guest's security version.";
        0x58 policy: u64, "Expected policy.";
    }
}

wire! {
    /// The identity block's authentication (SNP ABI, "ID authentication information structure").
    IdAuth: 0x1000, packed {
        0x000 id_key_algo: u32, "1: ECDSA P-384 with SHA-384.";
        0x004 auth_key_algo: u32, "1: ECDSA P-384 with SHA-384.";
        0x008 reserved1: [u8; 56], "Must be zero.";
        0x040 id_block_sig: [u8; 512], "Signature of the identity block: R then S, 72 bytes little-endian each.";
        0x240 id_key: [u8; 1028], "Identity key: curve u32, X and Y, 72 bytes little-endian each.";
        0x644 reserved2: [u8; 60], "Must be zero.";
        0x680 id_key_sig: [u8; 512], "The author key's signature of `id_key`.";
        0x880 auth_key: [u8; 1028], "Author key.";
        0xc84 reserved3: [u8; 892], "Must be zero.";
    }
}

wire! {
    /// What SNP_GUEST_STATUS writes.
    SnpGuestStatusPage: 0x20, packed {
        0x00 policy: u64, "The guest's policy.";
        0x08 asid: u32, "Its ASID, 0 if not active.";
        0x0c state: u8, "A [`super::SnpGuestState`].";
        0x0d reserved1: [u8; 3], "Zero.";
        0x10 reserved2: [u8; 16], "Zero in this model.";
    }
}
