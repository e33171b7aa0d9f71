//! Parsing of declarations in YAML.

use serde::de::DeserializeOwned;

/// Parses a YAML document.
///
/// # Errors
///
/// Names the place in the text and the problem there.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let source = config::File::from_str(text, config::FileFormat::Yaml);
    let value = config::Config::builder()
        .add_source(source)
        .build()
        .map_err(|error| error.to_string())?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let at = error.path().to_string();
        let inner = error.into_inner();
        if at == "." {
            inner.to_string()
        } else {
            format!("{at}: {inner}")
        }
    })
}
