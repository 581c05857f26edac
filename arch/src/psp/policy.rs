//! Guest policies: what the owner allows the platform to do.

bitflags::bitflags! {
    /// An SEV or SEV-ES guest's policy (SEV API, "Guest Policy"). The lowest firmware version it accepts is in the upper
    /// half, see [`SevPolicy::api_major`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SevPolicy: u32 {
        /// Debugging is forbidden.
        const NODBG = 1 << 0;
        /// Sharing the key with another guest is forbidden.
        const NOKS = 1 << 1;
        /// SEV-ES is required.
        const ES = 1 << 2;
        /// Sending to another platform is forbidden.
        const NOSEND = 1 << 3;
        /// May be sent only within the domain.
        const DOMAIN = 1 << 4;
        /// May be sent only to a platform that supports SEV.
        const SEV = 1 << 5;
        /// The bits of the lowest firmware version; not a flag.
        const API = 0xffff_0000;
    }
}

impl SevPolicy {
    /// The lowest firmware API major version the guest accepts.
    #[must_use]
    pub const fn api_major(self) -> u8 {
        (self.bits() >> 16) as u8
    }

    /// The lowest firmware API minor version the guest accepts.
    #[must_use]
    pub const fn api_minor(self) -> u8 {
        (self.bits() >> 24) as u8
    }
}

bitflags::bitflags! {
    /// An SNP guest's policy (SNP ABI, "Guest Policy").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SnpPolicy: u64 {
        /// The bits of the lowest firmware version; not a flag.
        const ABI = 0xffff;
        /// Simultaneous multithreading is allowed.
        const SMT = 1 << 16;
        /// Reserved, must be one.
        const RESERVED_MUST_BE_ONE = 1 << 17;
        /// A migration agent is allowed.
        const MIGRATE_MA = 1 << 18;
        /// Debugging is allowed.
        const DEBUG = 1 << 19;
        /// The guest may be activated on one socket only.
        const SINGLE_SOCKET = 1 << 20;
        /// CXL devices and memory are allowed.
        const CXL_ALLOW = 1 << 21;
        /// AES-256-XTS memory encryption is required.
        const MEM_AES_256_XTS = 1 << 22;
        /// Running average power limit must be off.
        const RAPL_DIS = 1 << 23;
        /// Ciphertext hiding must be on.
        const CIPHERTEXT_HIDING_DRAM = 1 << 24;
        /// Swapping and moving pages is forbidden.
        const PAGE_SWAP_DISABLE = 1 << 25;
    }
}

impl SnpPolicy {
    /// The lowest firmware ABI major version the guest accepts.
    #[must_use]
    pub const fn abi_major(self) -> u8 {
        (self.bits() >> 8) as u8
    }

    /// The lowest firmware ABI minor version the guest accepts.
    #[must_use]
    pub const fn abi_minor(self) -> u8 {
        self.bits() as u8
    }
}
