//! Blocks of one grid: their shared memory is their own, and they run in several orders.

use crate::build::{self, Mutation};
use crate::library::{BACKWARD, FORWARD, Library, ORDERS, POISON, Shape, Vector, args};

fn grid(blocks: u32, threads: u32, order: u64) -> Shape {
    Shape {
        blocks,
        order,
        ..Shape::block(threads)
    }
}

#[test]
fn shared_memory_starts_poisoned_and_is_the_block_s_own() {
    let blocks = Library::open("blocks");
    for order in ORDERS {
        let mut found = vec![0_u32; 9 * 64 * 2];
        let mut kept = found.clone();
        let shape = Shape {
            shared: 256,
            ..grid(9, 64, order)
        };
        blocks
            .launch(
                "find_and_leave",
                shape,
                args![&mut found[..], &mut kept[..]],
            )
            .unwrap();
        assert_eq!(found, vec![POISON; 9 * 64 * 2], "order {order}");
        for (i, kept) in kept.chunks_exact(2).enumerate() {
            let expected = (i / 64 * 64 + 63 - i % 64) as u32;
            assert_eq!(kept, [expected; 2], "order {order}");
        }
    }
}

/// The block of every step, in the order in which steps were done.
fn steps(blocks: &Library, order: u64) -> Vec<u32> {
    let mut lines = [0_u32];
    let mut log = vec![99_u32; 6 * 8];
    blocks
        .launch(
            "log_steps",
            grid(6, 40, order),
            args![&mut lines[..], &mut log[..], 8],
        )
        .unwrap();
    log
}

#[test]
fn blocks_run_forward_backward_or_mixed() {
    let blocks = Library::open("blocks");
    let in_turn: Vec<u32> = (0..6 * 8).map(|i| i / 8).collect();
    assert_eq!(steps(&blocks, FORWARD), in_turn);
    assert_eq!(
        steps(&blocks, BACKWARD),
        in_turn.iter().map(|block| 5 - block).collect::<Vec<_>>()
    );
    let mixed: Vec<_> = (2..8).map(|order| steps(&blocks, order)).collect();
    for (i, log) in mixed.iter().enumerate() {
        let switches = log.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(switches > 10, "{log:?}");
        assert!(!mixed[..i].contains(log), "two seeds, one order: {log:?}");
        let mut sorted = log.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, in_turn);
        assert_eq!(*log, steps(&blocks, 2 + i as u64), "one seed, two orders");
    }
}

#[test]
fn threads_run_forward_backward_or_mixed() {
    let blocks = Library::open("blocks");
    let order_of = |order| {
        let mut lines = [0_u32];
        let mut log = vec![0_u32; 100];
        blocks
            .launch(
                "log_threads",
                grid(1, 100, order),
                args![&mut lines[..], &mut log[..]],
            )
            .unwrap();
        log
    };
    let rising: Vec<u32> = (0..100).collect();
    assert_eq!(order_of(FORWARD), rising);
    assert_eq!(order_of(BACKWARD), (0..100).rev().collect::<Vec<_>>());
    let mut mixed = order_of(7);
    assert_ne!(mixed, rising);
    mixed.sort_unstable();
    assert_eq!(mixed, rising);
}

#[test]
fn the_last_block_sees_what_all_others_wrote() {
    let blocks = Library::open("blocks");
    for order in ORDERS {
        let mut arrived = [0_u32];
        let mut sums = [0_u32; 50];
        let mut total = [0_u32];
        let args = args![&mut arrived[..], &mut sums[..], &mut total[..]];
        blocks
            .launch("last_one_adds", grid(50, 32, order), args)
            .unwrap();
        assert_eq!((arrived[0], total[0]), (50, 50 * 51 / 2), "order {order}");
    }
}

#[test]
fn blocks_may_wait_for_each_other() {
    let blocks = Library::open("blocks");
    for order in ORDERS {
        for backward in [0, 1] {
            let mut flags = [0_u32; 20];
            let mut out = vec![0_u32; 20];
            let args = args![&mut flags[..], &mut out[..], backward];
            blocks.launch("chain", grid(20, 64, order), args).unwrap();
            assert_eq!(
                out,
                (1..=20).collect::<Vec<_>>(),
                "order {order}, backward {backward}"
            );
        }
    }
}

#[test]
fn waiting_for_nobody_ends() {
    let blocks = Library::open("blocks");
    for order in ORDERS {
        let mut flag = [0_u32];
        blocks.expect_fault(
            "wait_for_nobody",
            grid(3, 64, order),
            args![&mut flag[..]],
            &["thread 3", "none will write"],
        );
    }
}

#[test]
fn atomics_do_what_their_names_say() {
    let blocks = Library::open("blocks");
    for order in ORDERS {
        let mut words = vec![0_u32, 1000, 0, 0, 0];
        let mut sum = [0.0_f32];
        let mut signs = [0_i32];
        let args = args![&mut words[..], &mut sum[..], &mut signs[..]];
        blocks.launch("atomics", grid(3, 64, order), args).unwrap();
        assert_eq!(words, [63, 5, u32::MAX, 192 % 10, 3 * 192], "order {order}");
        assert_eq!((sum[0], signs[0]), (96.0, -384));
    }
}

#[test]
fn writes_outside_of_dynamic_shared_memory_are_reported() {
    let blocks = Library::open("blocks");
    let shape = Shape {
        shared: 100,
        ..Shape::block(1)
    };
    blocks.launch("write_behind", shape, args![99]).unwrap();
    blocks.expect_fault(
        "write_behind",
        shape,
        args![100],
        &["behind the end of dynamic shared memory"],
    );
    blocks.expect_fault("write_before", shape, args![], &["before the start"]);
}

#[test]
fn more_local_variables_than_fit_are_reported() {
    let mut out = [3_u32, 5];
    Library::open("blocks").expect_fault(
        "many_locals",
        Shape::block(2),
        args![&mut out[..]],
        &["more local variables than fit"],
    );
}

#[test]
fn launches_that_no_gpu_accepts_are_refused() {
    let blocks = Library::open("blocks");
    let shape = Shape::block(64);
    blocks.launch("at_most_64", shape, args![]).unwrap();
    let refused = |shape, what: &str| blocks.expect_fault("at_most_64", shape, args![], &[what]);
    refused(
        Shape::block(65),
        "65 threads to a block; it is compiled for 1 to 64",
    );
    refused(Shape::block(0), "0 threads");
    refused(Shape { blocks: 0, ..shape }, "a grid of 0 x 1 x 1");
    refused(
        Shape {
            shared: 232_449,
            ..shape
        },
        "232449 bytes of dynamic shared memory",
    );
}

#[test]
fn misaligned_and_far_accesses_are_reported_where_the_compiler_checks() {
    let blocks = Library::open("blocks");
    let input = [Vector([1; 4]); 4];
    let mut out = [Vector([0; 4])];
    blocks
        .launch(
            "load_wide",
            Shape::block(1),
            args![&input[..], &mut out[..], 16],
        )
        .unwrap();
    let mut numbers = [0.0_f32; 32];
    blocks
        .launch("index_too_far", Shape::warp(), args![&mut numbers[..], 31])
        .unwrap();
    if !build::checks_accesses() {
        return;
    }
    let args = args![&input[..], &mut out[..], 8];
    blocks.expect_fault(
        "load_wide",
        Shape::block(1),
        args,
        &["blocks.cu:", "uint4", "not a multiple of 16 but 8 off"],
    );
    let args = args![&mut numbers[..], 32];
    blocks.expect_fault(
        "index_too_far",
        Shape::warp(),
        args,
        &["blocks.cu:", "index 32 of 'float [32]'"],
    );
}

/// Every kernel of the package is there, and a changed source is another library.
#[test]
fn kernels_are_compiled_and_mutated() {
    let folder = build::kernels();
    for source in build::files("kernels", "cu") {
        let library = folder
            .join(source.file_stem().unwrap())
            .with_extension("so");
        assert!(library.exists(), "{}", library.display());
    }
    let half = |folder: &std::path::Path| {
        let library = Library::load(&folder.join("silu_mul.so"));
        let gate_up = [0.0_f32, 3.0, 4.0, 5.0];
        let mut out = [9.0_f32; 2];
        library
            .launch(
                "silu_mul_f32",
                Shape::warp(),
                // A width of 2, and 0, for gate and up in halves.
                args![&gate_up[..], &mut out[..], [2_u32, 0]],
            )
            .unwrap();
        out
    };
    assert_eq!(half(&folder)[0], 0.0);
    let mutation = Mutation {
        file: "common/silu.cuh",
        from: "__fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate)))",
        to: "1.0f",
    };
    assert_eq!(
        half(&build::mutated(&["silu_mul"], &[mutation])),
        [4.0, 5.0]
    );
}
