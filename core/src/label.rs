//! Enums whose variants are values of a label in metrics or of a column.

/// Declares an enum with `label`, which returns the text of a variant, and `LABELS`, all of these
/// texts in the order of declaration.
#[macro_export]
macro_rules! labelled {
    (
        $(#[$attribute:meta])*
        $visibility:vis enum $name:ident {
            $(
                $(#[$of_variant:meta])*
                $variant:ident $({ $($(#[$of_field:meta])* $field:ident: $type:ty),+ })? = $label:literal,
            )+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $visibility enum $name {
            $($(#[$of_variant])* $variant $({ $($(#[$of_field])* $field: $type),+ })?,)+
        }

        impl $name {
            $visibility const LABELS: &[&'static str] = &[$($label,)+];

            $visibility const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $label,)+
                }
            }
        }
    };
}
