//! Tests of the real program: over real TLS, with real keys, killed where it hurts.

#![expect(clippy::unwrap_used, reason = "a test ends where its preparation fails")]

mod support;
mod end_to_end;
mod follow;
mod rotation;
mod faults;
mod brought;
mod several;
mod records;
mod recovery;
mod memory;
mod hostile;

/// Runs tests side by side, each on a thread with its name.
macro_rules! together {
    ($($test:path,)*) => {
        std::thread::scope(|scope| {
            $(let named = std::thread::Builder::new().name(stringify!($test).into());
            named.spawn_scoped(scope, || support::runtime().block_on($test())).unwrap();)*
        })
    };
}

/// Those that wait for certificates to end, ten seconds and more: they wait together, whatever the number of processors.
#[test]
fn what_takes_the_life_of_a_certificate() {
    together!(
        rotation::root_and_issuer_rotate_without_a_failed_handshake,
        rotation::three_rotations_of_each_kind_in_a_row,
        rotation::issuers_rotate_by_themselves,
        follow::who_is_behind_is_waited_for_by_name_until_an_operator_overrides,
        follow::a_proxy_that_is_away_for_a_moment_is_not_forgotten,
        brought::replacements_are_taken_one_after_another_and_a_bad_one_changes_nothing,
        several::a_dead_leader_is_replaced_in_the_middle_of_a_rotation,
        hostile::who_falls_silent_is_given_up_and_who_asks_is_answered,
    );
}
