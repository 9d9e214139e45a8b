//! The command `unmoved`; everything it does is in [`unmoved::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    unmoved::cli::main()
}
