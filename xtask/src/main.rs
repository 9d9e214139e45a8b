//! The project's own commands, run as `cargo xtask …`.

fn main() {
    eprintln!("usage: cargo xtask setup|demo|test|bench");
    std::process::exit(2);
}
