//! Exception vectors.
//!
//! Source: APM vol. 2, table 8-1.

open_enum! {
    /// An exception or interrupt vector.
    Vector(u8) {
        DE = 0, "Divide error.";
        DB = 1, "Debug.";
        NMI = 2, "Non-maskable interrupt.";
        BP = 3, "Breakpoint.";
        OF = 4, "Overflow.";
        BR = 5, "Bound range.";
        UD = 6, "Invalid opcode.";
        NM = 7, "Device not available.";
        DF = 8, "Double fault.";
        TS = 10, "Invalid TSS.";
        NP = 11, "Segment not present.";
        SS = 12, "Stack.";
        GP = 13, "General protection.";
        PF = 14, "Page fault.";
        MF = 16, "x87 floating point.";
        AC = 17, "Alignment check.";
        MC = 18, "Machine check.";
        XF = 19, "SIMD floating point.";
        CP = 21, "Control protection.";
        HV = 28, "Hypervisor injection.";
        VC = 29, "VMM communication.";
        SX = 30, "Security.";
    }
}

impl Vector {
    /// Whether the exception pushes an error code.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Self::DF
                | Self::TS
                | Self::NP
                | Self::SS
                | Self::GP
                | Self::PF
                | Self::AC
                | Self::CP
                | Self::VC
                | Self::SX
        )
    }
}
