//! A small machine.
#![allow(dead_code)] // not every test needs all of it

use sevlab_memctl::model::{
    Cache, Core, CoreModel, Costs, Dram, DramModel, ExitCosts, Inclusion, Latency, Model, Policy,
    Prefetch,
};

pub fn cache(lines: u64, ways: u32, policy: Policy) -> Cache {
    Cache {
        size: lines * 64,
        ways,
        policy,
    }
}

/// L1 of two lines, L2 of four, LLC of eight, each one set; every latency another decimal digit.
pub fn model() -> Model {
    Model {
        name: "test".to_owned(),
        core: Core {
            model: CoreModel::Simple,
            clock_mhz: 1000,
            window: 256,
            mshrs: 16,
        },
        l1i: cache(2, 2, Policy::Lru),
        l1d: cache(2, 2, Policy::Lru),
        l2: Some(cache(4, 4, Policy::Lru)),
        llc: cache(8, 8, Policy::Lru),
        llc_inclusion: Inclusion::Inclusive,
        prefetch: Prefetch {
            next_line: false,
            stride: false,
            degree: 2,
        },
        tlb: None,
        dram: Dram {
            model: DramModel::Flat,
            channels: 1,
            banks: 2,
            row_bytes: 256,
            line_ns: 0.0,
        },
        latency: Latency {
            l1d_cycles: 0,
            l1i_cycles: 0,
            l2_cycles: 1,
            llc_cycles: 10,
            remote_cycles: 100,
            upgrade_cycles: 1000,
            dram_ns: 10_000.0,
            dram_row_ns: 5000.0,
            dram_write_ns: 100_000.0,
            aes_ns: 1_000_000.0,
            aes_write_ns: 10_000_000.0,
            aes_line_ns: 0.0,
            tlb2_cycles: 2,
            walk_cycles: 20,
            rmp_cycles: 200,
        },
        cost: Costs::default(),
        exit: ExitCosts::default(),
    }
}
