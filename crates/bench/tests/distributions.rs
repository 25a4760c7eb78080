//! Distributions against those that GuideLLM 0.8.1 computes from the same values. The numbers of values are such
//! that no percentile falls between two of them: there GuideLLM takes the one that the rounding of its sums hits.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use powerband_bench::{DistributionSummary, summarize, summarize_weighted};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    pairs: Vec<(f64, f64)>,
    summary: DistributionSummary,
}

#[test]
fn every_number_is_guidellms() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/distributions.json");
    let fixture: Fixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(fixture.cases.len(), 14);
    for Case {
        name,
        pairs,
        summary: theirs,
    } in fixture.cases
    {
        let ours = summarize_weighted(&pairs);
        let near = |what: &str, a: f64, b: f64| {
            assert!(
                (a - b).abs() <= 1e-9 * (1.0 + a.abs()),
                "{name}, {what}: {a} is not {b}"
            );
        };
        near("mean", ours.mean, theirs.mean);
        near("variance", ours.variance, theirs.variance);
        near("std_dev", ours.std_dev, theirs.std_dev);
        near("total_sum", ours.total_sum, theirs.total_sum);
        // Values that occurred: the very same.
        assert_eq!(
            (ours.median, ours.mode, ours.min, ours.max, ours.count),
            (
                theirs.median,
                theirs.mode,
                theirs.min,
                theirs.max,
                theirs.count
            ),
            "{name}"
        );
        assert_eq!(ours.percentiles, theirs.percentiles, "{name}");
        assert_eq!(ours.percentile_cis, theirs.percentile_cis, "{name}");
        match (ours.mean_ci, theirs.mean_ci) {
            (Some(ours), Some(theirs)) => {
                near("mean, lower", ours.lower, theirs.lower);
                near("mean, upper", ours.upper, theirs.upper);
            }
            (ours, theirs) => assert_eq!(ours, theirs, "{name}"),
        }
        if pairs.iter().all(|pair| pair.1 == 1.0) {
            let values: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
            assert_eq!(summarize(&values), ours, "{name}");
        }
    }
}
