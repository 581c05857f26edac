//! The two shapes every table of this crate has: a layout in memory, and a set of numbers that may grow.

/// Declares a structure as a specification prints it, one row a field: offset, name, type, meaning. The offsets and the
/// size are asserted at compile time, so a row can't disagree with the compiler's layout. The second word after the name:
/// `packed` for layouts with fields off their natural alignment, `aligned` for the rest, `sealed` for private fields.
macro_rules! wire {
    (
        $(#[$meta:meta])*
        $name:ident: $size:literal, $repr:tt {
            $($offset:literal $field:ident: $ty:ty, $doc:literal;)*
        }
    ) => {
        wire!(@define $repr, $(#[$meta])* $name { $($field: $ty, $doc;)* });

        impl $name {
            /// Bytes this structure takes in memory.
            pub const SIZE: usize = $size;
        }

        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($name, $field) == $offset);)*
    };
    (@define aligned, $(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty, $doc:literal;)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            $(#[doc = $doc] pub $field: $ty,)*
        }
    };
    (@define sealed, $(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty, $doc:literal;)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            $(#[doc = $doc] $field: $ty,)*
        }
    };
    (@define packed, $(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty, $doc:literal;)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned,
        )]
        #[repr(C, packed)]
        pub struct $name {
            $(#[doc = $doc] pub $field: $ty,)*
        }
    };
}

/// Declares an open set of numbers: any value is representable, the known ones are constants with a name.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $name:ident($repr:ty) {
            $($item:ident = $value:expr, $doc:literal;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            $(#[doc = $doc] pub const $item: Self = Self($value);)*

            /// Every number that has a name, in the table's order.
            pub const ALL: &'static [Self] = &[$(Self::$item),*];

            /// The specification's name of this number, if it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                $(if self.0 == Self::$item.0 { return Some(stringify!($item)); })*
                None
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x}"), self.0)?;
                match self.name() {
                    Some(name) => write!(f, " {name})"),
                    None => f.write_str(")"),
                }
            }
        }
    };
}
