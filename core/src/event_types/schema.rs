//! The JSON schema of a declaration, for editors.

use serde_json::{Value, json};

use super::declaration::Declaration;
use crate::yaml;

/// Returns the JSON schema of a file that declares an event type.
///
/// It has the shape of a declaration. What depends on more than one place, such as the columns of a
/// sorting key, is checked only by [`super::Catalog::from_files`].
pub fn json_schema() -> Value {
    let mut schema = yaml::json_schema::<Declaration>("Sluice: event type");
    let column_type = &mut schema["$defs"]["Column"]["properties"]["type"];
    column_type["examples"] = json!(TYPES);
    schema
}

/// The types that an editor suggests.
const TYPES: [&str; 9] = [
    "String",
    "LowCardinality(String)",
    "Int64",
    "UInt64",
    "Float64",
    "Bool",
    "UUID",
    "DateTime64(3, 'UTC')",
    "Nullable(Int64)",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_types::ColumnType;

    #[test]
    fn suggested_types_are_known() {
        for name in TYPES {
            assert_eq!(ColumnType::parse(name).unwrap().to_string(), name);
        }
        let schema = json_schema();
        let suggested = &schema["$defs"]["Column"]["properties"]["type"]["examples"];
        assert_eq!(suggested, &json!(TYPES));
    }

    #[test]
    fn the_schema_refuses_unknown_keys_and_describes_known_ones() {
        let schema = json_schema();
        for part in [
            &schema,
            &schema["$defs"]["Column"],
            &schema["$defs"]["Rule"],
        ] {
            assert_eq!(part["additionalProperties"], false, "{part:#}");
            let properties = part["properties"].as_object().unwrap();
            for (name, property) in properties {
                assert!(property["description"].is_string(), "{name}: {property:#}");
            }
        }
        assert_eq!(
            schema["$defs"]["Column"]["required"],
            json!(["name", "type"])
        );
        let formats = crate::formats::json_schema();
        let format = &formats["$defs"]["Format"]["properties"];
        assert_eq!(
            format["csv"]["properties"]["nulls"]["items"]["type"],
            "string"
        );
        assert!(
            format["json"]["properties"]["records"].is_object(),
            "{format:#}"
        );
    }
}
