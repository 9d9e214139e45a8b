//! A guest in the shim is moved by the stock toolstack and notices nothing.

use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Lab, Scripts};
use unmoved_tests::unnoticed;

#[test]
fn an_unfriendly_guest_moves_there_and_back_unnoticed() {
    let kernel = GuestKernel::Debian12
        .get(&Tools::get().expect("tools"))
        .expect("kernel");
    let config = Config {
        scripts: Scripts::Xen,
        ..Config::hosts(2)
    };
    let seen = Lab::run("unnoticed", &config, |lab| {
        unnoticed::run(lab, &kernel, &unnoticed::by_xl, 1)
    })
    .expect("it moves");
    assert_eq!(seen.noticed(), Vec::<String>::new());
    assert!(seen.disk_verified > 0);
    // It was away for seconds; how exactly it can be asked depends on the machine.
    let [before, after] = seen.wall;
    let limit = 200.0 + before.uncertainty_ms + after.uncertainty_ms;
    assert!(seen.wall_shift_ms().abs() < limit, "{:?}", seen.wall);
}
