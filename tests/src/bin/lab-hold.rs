//! Starts a lab of one host and holds it until it is killed: the victim of the clean-up test.

use unmoved_lab::{Config, Lab};

fn main() {
    if let Err(error) = hold() {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}

fn hold() -> anyhow::Result<()> {
    Lab::run("hold", &Config::hosts(1), |lab| {
        // Ends with the host, which nobody stops: so with this process.
        lab.host(0)
            .start(&["sleep", "100000"])?
            .wait(std::time::Duration::from_secs(90_000))?;
        Ok(())
    })
}
