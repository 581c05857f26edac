//! The reverse map table: its entries, the instructions' operands and results, the error bits of a violation.
//!
//! Source: APM vol. 2, 15.36; Linux `arch/x86/virt/svm/sev.c` for the entry's bits.

/// Bytes at the start of the table that hold no entries.
pub const BOOKKEEPING_SIZE: u64 = 0x4000;

wire! {
    /// One entry: the state of one system page.
    RmpEntry: 0x10, aligned {
        0x00 lo: u64, "See the accessors.";
        0x08 hi: u64, "Permissions of VMPL0..VMPL3, a byte each, in bits 31:0. The manual keeps this half to itself; this is our choice.";
    }
}

impl RmpEntry {
    /// The page belongs to a guest or to the firmware.
    pub const ASSIGNED: u64 = 1 << 0;
    /// The entry covers 2 MiB.
    pub const PAGE_2M: u64 = 1 << 1;
    /// The hypervisor may not change the entry.
    pub const IMMUTABLE: u64 = 1 << 2;
    /// Bits 50:12: guest physical address.
    pub const GPA_MASK: u64 = 0x0007_ffff_ffff_f000;
    /// Bits 60:51: ASID.
    pub const ASID_SHIFT: u32 = 51;
    /// The ASID, once shifted down.
    pub const ASID_MASK: u64 = 0x3ff;
    /// The page is a VMSA.
    pub const VMSA: u64 = 1 << 61;
    /// The guest has validated the page.
    pub const VALIDATED: u64 = 1 << 62;

    /// An entry's first half.
    #[must_use]
    pub const fn pack(gpa: u64, asid: u32, flags: u64) -> u64 {
        (gpa & Self::GPA_MASK) | (asid as u64 & Self::ASID_MASK) << Self::ASID_SHIFT | flags
    }

    /// Whether the page belongs to a guest or to the firmware.
    #[must_use]
    pub const fn assigned(&self) -> bool {
        self.lo & Self::ASSIGNED != 0
    }

    /// Whether the entry covers 2 MiB.
    #[must_use]
    pub const fn is_2m(&self) -> bool {
        self.lo & Self::PAGE_2M != 0
    }

    /// Whether the hypervisor may not change the entry.
    #[must_use]
    pub const fn immutable(&self) -> bool {
        self.lo & Self::IMMUTABLE != 0
    }

    /// The guest physical address the page is assigned at.
    #[must_use]
    pub const fn gpa(&self) -> u64 {
        self.lo & Self::GPA_MASK
    }

    /// The guest's ASID; 0 with assigned is the firmware.
    #[must_use]
    pub const fn asid(&self) -> u32 {
        ((self.lo >> Self::ASID_SHIFT) & Self::ASID_MASK) as u32
    }

    /// Whether the page is a VMSA.
    #[must_use]
    pub const fn vmsa(&self) -> bool {
        self.lo & Self::VMSA != 0
    }

    /// Whether the guest has validated the page.
    #[must_use]
    pub const fn validated(&self) -> bool {
        self.lo & Self::VALIDATED != 0
    }

    /// The permissions of a VMPL, a [`VmplPerms`]; the VMPL is taken modulo 4.
    #[must_use]
    pub const fn perms(&self, vmpl: u8) -> u8 {
        (self.hi >> ((vmpl & 3) * 8)) as u8
    }

    /// Sets the permissions of a VMPL, a [`VmplPerms`]; the VMPL is taken modulo 4.
    pub const fn set_perms(&mut self, vmpl: u8, perms: u8) {
        let shift = (vmpl & 3) * 8;
        self.hi = (self.hi & !(0xff << shift)) | (perms as u64) << shift;
    }
}

bitflags::bitflags! {
    /// What a VMPL may do with a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct VmplPerms: u8 {
        /// Read.
        const READ = 1 << 0;
        /// Write.
        const WRITE = 1 << 1;
        /// Execute at CPL 3.
        const EXEC_USER = 1 << 2;
        /// Execute at CPL 0..2.
        const EXEC_SUPERVISOR = 1 << 3;
        /// Supervisor shadow stack.
        const SUPERVISOR_SHADOW_STACK = 1 << 4;
        /// Everything a page's owner has.
        const FULL = 0xf;
    }
}

wire! {
    /// RMPUPDATE's operand in memory.
    RmpUpdate: 0x10, aligned {
        0x00 gpa: u64, "Guest physical address.";
        0x08 assigned: u8, "1: assigned.";
        0x09 page_size: u8, "0: 4 KiB, 1: 2 MiB.";
        0x0a immutable: u8, "1: immutable.";
        0x0b reserved: u8, "Must be zero.";
        0x0c asid: u32, "ASID.";
    }
}

open_enum! {
    /// What PVALIDATE, RMPADJUST, RMPUPDATE and PSMASH return in EAX.
    RmpStatus(u32) {
        SUCCESS = 0, "Done.";
        FAIL_INPUT = 1, "An operand is invalid.";
        FAIL_PERMISSION = 2, "The current VMPL may not do that.";
        FAIL_INUSE = 3, "Another processor is using the entry.";
        FAIL_OVERLAP = 4, "A 4 KiB and a 2 MiB entry overlap.";
        FAIL_SIZEMISMATCH = 6, "The page size asked for is not the entry's.";
    }
}

/// RMPADJUST: RDX bits 7:0 are the target VMPL.
pub const RMPADJUST_VMPL_MASK: u64 = 0xff;
/// RMPADJUST: RDX bits 15:8 are the permissions.
pub const RMPADJUST_PERMS_SHIFT: u32 = 8;
/// RMPADJUST: RDX bit 16 makes the page a VMSA.
pub const RMPADJUST_VMSA: u64 = 1 << 16;

bitflags::bitflags! {
    /// EXITINFO1 of a nested page fault (APM vol. 2, 15.25.6 and 15.36.10).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct NpfError: u64 {
        /// The nested page was present.
        const PRESENT = 1 << 0;
        /// A write.
        const WRITE = 1 << 1;
        /// A user access; nested accesses always are.
        const USER = 1 << 2;
        /// A reserved bit was set in the nested tables.
        const RESERVED = 1 << 3;
        /// An instruction fetch.
        const FETCH = 1 << 4;
        /// A shadow stack access.
        const SHADOW_STACK = 1 << 6;
        /// An RMP check failed.
        const RMP = 1 << 31;
        /// The fault is on the final guest physical address.
        const FINAL = 1 << 32;
        /// The fault is on a guest page table.
        const WALK = 1 << 33;
        /// The access had the effective C-bit.
        const ENC = 1 << 34;
        /// Page sizes of RMP and tables disagree.
        const SIZEM = 1 << 35;
        /// The VMPL lacks the permission.
        const VMPL = 1 << 36;
        /// Supervisor shadow stack.
        const SSS = 1 << 37;
    }
}
