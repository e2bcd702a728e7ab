//! Threads of one block: barriers and operations of a warp, right ones and wrong ones.

use crate::library::{Library, ORDERS, Shape, args};

fn count_up(n: u32) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// Runs `reverse` and `rotate` in every order and says in how many of the orders each gave what it should.
fn right_orders(threads: &Library) -> (usize, usize) {
    let n = 192;
    let reversed: Vec<f32> = (0..n).map(|i| (n - 1 - i) as f32).collect();
    let rotated: Vec<f32> = (0..n)
        .map(|i| (i / 32 * 32 + (i + 1) % 32) as f32)
        .collect();
    let right = |name, shared, expected: &[f32]| {
        let is_right = |order| {
            let mut out = count_up(n);
            let shape = Shape {
                shared,
                order,
                ..Shape::block(n)
            };
            threads.launch(name, shape, args![&mut out[..]]).unwrap();
            out == expected
        };
        ORDERS.into_iter().filter(|&order| is_right(order)).count()
    };
    (
        right("reverse", 0, &reversed),
        right("rotate", n * 4, &rotated),
    )
}

#[test]
fn threads_meet_at_barriers() {
    assert_eq!(
        right_orders(&Library::open("threads")),
        (ORDERS.len(), ORDERS.len())
    );
}

#[test]
fn a_missing_barrier_is_noticed_in_every_order() {
    let (reverse, rotate) = right_orders(&Library::with("threads", &["LEAVE_OUT=1"]));
    assert_eq!((reverse, rotate), (0, ORDERS.len()));
    let (reverse, rotate) = right_orders(&Library::with("threads", &["LEAVE_OUT=2"]));
    assert_eq!((reverse, rotate), (0, ORDERS.len()));
    let (reverse, rotate) = right_orders(&Library::with("threads", &["LEAVE_OUT=3"]));
    assert_eq!((reverse, rotate), (ORDERS.len(), 0));
}

#[test]
fn lanes_exchange_values_and_votes() {
    let threads = Library::open("threads");
    for order in ORDERS {
        let mut out = vec![0_u32; 12 * 64];
        let shape = Shape {
            order,
            ..Shape::block(64)
        };
        threads
            .launch("warp_operations", shape, args![&mut out[..]])
            .unwrap();
        for (thread, got) in out.chunks_exact(12).enumerate() {
            let thread = thread as u32;
            let (warp, lane) = (thread / 32 * 32, thread % 32);
            let of = |source: u32| 10 * (warp + source);
            let up = |delta, width| {
                if lane % width >= delta {
                    lane - delta
                } else {
                    lane
                }
            };
            let down = |delta, width| {
                if lane % width + delta < width {
                    lane + delta
                } else {
                    lane
                }
            };
            let every_third = (0..32)
                .filter(|lane| lane % 3 == 0)
                .map(|lane| 1_u32 << lane)
                .sum();
            let expected = [
                of(5),
                of(lane / 8 * 8 + (lane + 3) % 8),
                of(up(2, 32)),
                of(up(3, 16)),
                of(down(4, 32)),
                of(down(1, 4)),
                of(lane ^ 9),
                every_third,
                1,
                2,
                of(if lane < 12 { 7 } else { 20 }),
                of(lane ^ 1),
            ];
            assert_eq!(got, expected, "thread {thread}, order {order}");
        }
    }
}

#[test]
fn threads_may_end_early() {
    let threads = Library::open("threads");
    for stay in [1, 31, 32, 40, 96] {
        let mut out = vec![0.0_f32; 96];
        threads
            .launch("leave_early", Shape::block(96), args![&mut out[..], stay])
            .unwrap();
        for (i, &sum) in out.iter().enumerate() {
            assert_eq!(
                sum,
                if i < stay as usize { stay as f32 } else { 0.0 },
                "thread {i} of {stay}"
            );
        }
    }
}

#[test]
fn a_block_of_1024_threads_has_thousands_of_barriers() {
    let threads = Library::open("threads");
    for order in ORDERS {
        let mut out = vec![0_u32; 1024];
        let shape = Shape {
            order,
            ..Shape::block(1024)
        };
        threads
            .launch("many_barriers", shape, args![&mut out[..], 3000])
            .unwrap();
        assert_eq!(out, [3000; 1024], "order {order}");
    }
}

#[test]
fn divergence_and_deadlocks_are_reported() {
    let threads = Library::open("threads");
    let block = Shape::block(64);
    threads.expect_fault(
        "barrier_of_some",
        block,
        args![40],
        &[
            "block (0, 0, 0)",
            "threads 0-39: wait in __syncthreads",
            "threads 40-63: wait in __shfl_sync",
            "threads.cu:",
        ],
    );
    threads.expect_fault(
        "barriers_at_two_places",
        block,
        args![],
        &["thread 1, at", "a barrier, while other lanes"],
    );
    threads.expect_fault(
        "two_operations",
        block,
        args![],
        &["thread 1, at", "__ballot_sync", "are at __shfl_sync"],
    );
    let ended = "of lanes ffffffff, of which 00000001 have ended";
    threads.expect_fault("lane_that_ended", block, args![0], &["thread 1, at", ended]);
    threads.expect_fault(
        "lane_that_ended",
        block,
        args![31],
        &["lane 31 has ended, for which __ballot_sync of lanes ffffffff waits"],
    );
    threads.expect_fault(
        "lane_that_ended",
        Shape::block(20),
        args![99],
        &["fff00000 have ended or never were"],
    );
    threads.expect_fault(
        "not_of_the_mask",
        block,
        args![],
        &["thread 16, at", "lanes 0000ffff by lane 16"],
    );
    threads.expect_fault(
        "from_outside_the_mask",
        block,
        args![],
        &["lane 0 asks for the value of lane 20"],
    );
    threads.expect_fault(
        "overlapping_masks",
        Shape::warp(),
        args![],
        &["lane 16 has ended, for which __ballot_sync of lanes ffffffff waits"],
    );
    // Nothing of it stays.
    let mut out = vec![0_u32; 64];
    threads
        .launch("many_barriers", block, args![&mut out[..], 5])
        .unwrap();
    assert_eq!(out, [5; 64]);
}
