//! Command buffers and data blocks of the SEV and SEV-ES commands.

wire! {
    /// INIT.
    Init: 0x14, packed {
        0x00 flags: u32, "In: see [`Init::FLAG_ES`].";
        0x04 reserved: u32, "Must be zero.";
        0x08 tmr_address: u64, "In: the trusted memory region, for SEV-ES.";
        0x10 tmr_len: u32, "In: its length.";
    }
}

impl Init {
    /// INIT and INIT_EX `flags`: configure the platform for SEV-ES.
    pub const FLAG_ES: u32 = 1;
}

wire! {
    /// INIT_EX.
    InitEx: 0x24, packed {
        0x00 length: u32, "In: length of this buffer.";
        0x04 flags: u32, "In: see [`Init::FLAG_ES`].";
        0x08 tmr_address: u64, "In: the trusted memory region, for SEV-ES.";
        0x10 tmr_len: u32, "In: its length.";
        0x14 reserved: u32, "Must be zero.";
        0x18 nv_address: u64, "In: non-volatile storage kept by the host.";
        0x20 nv_len: u32, "In: its length.";
    }
}

wire! {
    /// PLATFORM_STATUS, all out.
    PlatformStatus: 0x0c, packed {
        0x00 api_major: u8, "API version, major.";
        0x01 api_minor: u8, "API version, minor.";
        0x02 state: u8, "A [`super::PlatformState`].";
        0x03 flags: u32, "Bit 0: has an owner; bit 8: configured for SEV-ES.";
        0x07 build: u8, "Firmware build.";
        0x08 guest_count: u32, "Number of guest contexts.";
    }
}

impl PlatformStatus {
    /// `flags`: the platform has an external owner.
    pub const FLAG_OWNED: u32 = 1 << 0;
    /// `flags`: the platform is configured for SEV-ES.
    pub const FLAG_ES: u32 = 1 << 8;
}

wire! {
    /// PEK_CSR.
    PekCsr: 0x0c, packed {
        0x00 address: u64, "In: where the request goes.";
        0x08 len: u32, "In, out: its length.";
    }
}

wire! {
    /// PEK_CERT_IMPORT.
    PekCertImport: 0x1c, packed {
        0x00 pek_cert_address: u64, "In: the platform endorsement key's certificate.";
        0x08 pek_cert_len: u32, "In: its length.";
        0x0c reserved: u32, "Must be zero.";
        0x10 oca_cert_address: u64, "In: the owner's certificate.";
        0x18 oca_cert_len: u32, "In: its length.";
    }
}

wire! {
    /// PDH_CERT_EXPORT.
    PdhCertExport: 0x1c, packed {
        0x00 pdh_cert_address: u64, "In: where the certificate goes.";
        0x08 pdh_cert_len: u32, "In, out: its length.";
        0x0c reserved: u32, "Must be zero.";
        0x10 cert_chain_address: u64, "In: where PEK, OCA and CEK certificates go.";
        0x18 cert_chain_len: u32, "In, out: their length.";
    }
}

wire! {
    /// GET_ID.
    GetId: 0x0c, packed {
        0x00 address: u64, "In: where the identifiers go.";
        0x08 len: u32, "In, out: their length.";
    }
}

wire! {
    /// The buffer of every command that takes a handle only: DECOMMISSION, DEACTIVATE, LAUNCH_FINISH, SEND_FINISH,
    /// SEND_CANCEL, RECEIVE_FINISH.
    Handle: 0x04, packed {
        0x00 handle: u32, "In: the guest.";
    }
}

/// DECOMMISSION.
pub type Decommission = Handle;
/// DEACTIVATE.
pub type Deactivate = Handle;
/// LAUNCH_FINISH.
pub type LaunchFinish = Handle;

wire! {
    /// ACTIVATE.
    Activate: 0x08, packed {
        0x00 handle: u32, "In: the guest.";
        0x04 asid: u32, "In: the ASID its key is installed for.";
    }
}

wire! {
    /// GUEST_STATUS.
    GuestStatus: 0x0d, packed {
        0x00 handle: u32, "In: the guest.";
        0x04 policy: u32, "Out: its policy.";
        0x08 asid: u32, "Out: its ASID, 0 if not active.";
        0x0c state: u8, "Out: a [`super::GuestState`].";
    }
}

wire! {
    /// LAUNCH_START.
    LaunchStart: 0x24, packed {
        0x00 handle: u32, "In, out: 0, or a guest to share the key with; the new guest's handle.";
        0x04 policy: u32, "In: see [`super::SevPolicy`].";
        0x08 dh_cert_address: u64, "In: the owner's Diffie-Hellman certificate, or 0.";
        0x10 dh_cert_len: u32, "In: its length.";
        0x14 reserved: u32, "Must be zero.";
        0x18 session_address: u64, "In: the [`Session`], or 0.";
        0x20 session_len: u32, "In: its length.";
    }
}

wire! {
    /// LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA: a region of guest memory to encrypt in place.
    LaunchUpdate: 0x14, packed {
        0x00 handle: u32, "In: the guest.";
        0x04 reserved: u32, "Must be zero.";
        0x08 address: u64, "In: system physical address, 16-byte aligned.";
        0x10 len: u32, "In: length, a multiple of 16.";
    }
}

/// LAUNCH_UPDATE_DATA.
pub type LaunchUpdateData = LaunchUpdate;
/// LAUNCH_UPDATE_VMSA.
pub type LaunchUpdateVmsa = LaunchUpdate;

wire! {
    /// LAUNCH_MEASURE.
    LaunchMeasure: 0x14, packed {
        0x00 handle: u32, "In: the guest.";
        0x04 reserved: u32, "Must be zero.";
        0x08 address: u64, "In: where the [`Measurement`] goes.";
        0x10 len: u32, "In, out: its length.";
    }
}

wire! {
    /// LAUNCH_SECRET, and with the same layout SEND_UPDATE_DATA, SEND_UPDATE_VMSA, RECEIVE_UPDATE_DATA and
    /// RECEIVE_UPDATE_VMSA.
    LaunchSecret: 0x34, packed {
        0x00 handle: u32, "In: the guest.";
        0x04 reserved1: u32, "Must be zero.";
        0x08 hdr_address: u64, "In: the [`PacketHeader`].";
        0x10 hdr_len: u32, "In: its length.";
        0x14 reserved2: u32, "Must be zero.";
        0x18 guest_address: u64, "In: guest memory, by system physical address.";
        0x20 guest_len: u32, "In: its length.";
        0x24 reserved3: u32, "Must be zero.";
        0x28 trans_address: u64, "In: the transport buffer.";
        0x30 trans_len: u32, "In: its length.";
    }
}

wire! {
    /// DBG_DECRYPT and DBG_ENCRYPT.
    Dbg: 0x1c, packed {
        0x00 handle: u32, "In: the guest.";
        0x04 reserved: u32, "Must be zero.";
        0x08 src_address: u64, "In: read from here, 16-byte aligned.";
        0x10 dst_address: u64, "In: written here, 16-byte aligned.";
        0x18 len: u32, "In: length, a multiple of 16.";
    }
}

wire! {
    /// ATTESTATION.
    Attestation: 0x24, packed {
        0x00 handle: u32, "In: the guest.";
        0x04 reserved: u32, "Must be zero.";
        0x08 address: u64, "In: where the report goes.";
        0x10 mnonce: [u8; 16], "In: copied into the report.";
        0x20 len: u32, "In, out: the report's length.";
    }
}

wire! {
    /// The owner's session: transport keys wrapped for the platform (SEV API, "Session").
    Session: 0x80, packed {
        0x00 nonce: [u8; 16], "Salt of the key derivation.";
        0x10 wrap_tk: [u8; 32], "TEK then TIK, encrypted with the key encryption key.";
        0x30 wrap_iv: [u8; 16], "Initial counter block of that encryption.";
        0x40 wrap_mac: [u8; 32], "HMAC-SHA256 of `wrap_tk` with the key integrity key.";
        0x60 policy_mac: [u8; 32], "HMAC-SHA256 of the policy with TIK.";
    }
}

wire! {
    /// What LAUNCH_MEASURE returns.
    Measurement: 0x30, packed {
        0x00 measure: [u8; 32], "HMAC-SHA256 with TIK over context, versions, policy, digest and nonce.";
        0x20 mnonce: [u8; 16], "The firmware's nonce.";
    }
}

wire! {
    /// Header of an injected secret or of a transported packet.
    PacketHeader: 0x34, packed {
        0x00 flags: u32, "Bit 0: the data is compressed.";
        0x04 iv: [u8; 16], "Initial counter block of AES-128-CTR with TEK.";
        0x14 mac: [u8; 32], "HMAC-SHA256 with TIK.";
    }
}

wire! {
    /// An SEV certificate (SEV API, appendix "SEV certificate"): PDH, PEK, OCA, CEK.
    Certificate: 0x824, packed {
        0x000 version: u32, "1.";
        0x004 api_major: u8, "Firmware API version, major.";
        0x005 api_minor: u8, "Firmware API version, minor.";
        0x006 reserved: u16, "Zero.";
        0x008 key_usage: u32, "A [`KeyUsage`].";
        0x00c key_algo: u32, "A [`KeyAlgo`].";
        0x010 key: [u8; 0x404], "Public key: for a curve, its number u32, then X and Y, 72 bytes little-endian each.";
        0x414 sig1_usage: u32, "A [`KeyUsage`]: who made the first signature.";
        0x418 sig1_algo: u32, "A [`KeyAlgo`].";
        0x41c sig1: [u8; 0x200], "First signature over the first 0x414 bytes: R then S, 72 bytes little-endian each.";
        0x61c sig2_usage: u32, "A [`KeyUsage`]: who made the second signature.";
        0x620 sig2_algo: u32, "A [`KeyAlgo`].";
        0x624 sig2: [u8; 0x200], "Second signature over the first 0x414 bytes.";
    }
}

open_enum! {
    /// What a key in a certificate is for.
    KeyUsage(u32) {
        ARK = 0x0000, "AMD root key.";
        ASK = 0x0013, "AMD SEV signing key.";
        INVALID = 0x1000, "No key.";
        OCA = 0x1001, "Owner's certificate authority.";
        PEK = 0x1002, "Platform endorsement key.";
        PDH = 0x1003, "Platform Diffie-Hellman key.";
        CEK = 0x1004, "Chip endorsement key.";
    }
}

open_enum! {
    /// Algorithm of a key or a signature in a certificate.
    KeyAlgo(u32) {
        INVALID = 0x000, "None.";
        RSA_SHA256 = 0x001, "RSA with SHA-256.";
        ECDSA_SHA256 = 0x002, "ECDSA with SHA-256.";
        ECDH_SHA256 = 0x003, "ECDH with SHA-256.";
        RSA_SHA384 = 0x101, "RSA with SHA-384.";
        ECDSA_SHA384 = 0x102, "ECDSA with SHA-384.";
        ECDH_SHA384 = 0x103, "ECDH with SHA-384.";
    }
}

/// Curve number of P-256 in a certificate.
pub const CURVE_P256: u32 = 1;
/// Curve number of P-384 in a certificate.
pub const CURVE_P384: u32 = 2;
