//! The image.

use std::path::Path;

#[test]
fn the_image_is_built_with_the_toolchain_of_the_workspace() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let toolchain = read("rust-toolchain.toml");
    let (_, channel) = toolchain.split_once("channel = \"").unwrap();
    let (channel, _) = channel.split_once('"').unwrap();
    assert!(read("Dockerfile").contains(&format!("FROM rust:{channel}-slim-")));
}
