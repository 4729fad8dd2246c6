//! What the numbers say, in sentences that are computed from them, and no more than they say.
//!
//! Times are told apart only where they differ by more than the epochs of one run do; row counts are exact, but a controller that decides
//! beside the training can differ from run to run, so less than [`ROWS_ALIKE`] counts as no difference.

use super::plot::tidy;
use super::tables::{Block, percent};
use crate::record::{Document, Run};
use crate::setup::SetUp;

/// Row counts within this share of each other are called equal.
const ROWS_ALIKE: f64 = 0.02;

/// The sentences of a document.
pub fn sentences(document: &Document) -> Vec<String> {
    let blocks = Block::of(document);
    let mut sentences = vec![sameness(document)];
    for block in &blocks {
        sentences.extend(best(block));
        sentences.extend(model(block, document.settings.ranks));
    }
    sentences.extend(lookahead(&blocks, document.settings.ranks));
    sentences
}

/// Whether all runs trained the same network, bit by bit.
fn sameness(document: &Document) -> String {
    let Some(lead) = document.runs.first() else { return "Nothing ran.".to_owned() };
    let bits = |run: &Run| run.series.loss.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
    let expected = bits(lead);
    for run in &document.runs[1..] {
        if let Some(at) = bits(run).iter().zip(&expected).position(|(a, b)| a != b) {
            return format!(
                "The losses of {} and {} differ from minibatch {at} on. They must not: rows were wrong in one of them.",
                run.setup, lead.setup
            );
        }
    }
    match document.runs.len() {
        1 => format!("One run of {} minibatches a rank.", expected.len()),
        runs => format!(
            "All {runs} runs computed the same {} losses, bit for bit: whatever keeps or moves the rows, training sees the same bytes.",
            expected.len()
        ),
    }
}

/// The fastest of a block, and by how much.
fn best(block: &Block) -> Option<String> {
    let base = block.base()?;
    let fastest = block.runs.iter().min_by(|a, b| a.epoch_s_median.total_cmp(&b.epoch_s_median))?;
    let title = match block.lookahead {
        0 => "Without lookahead".to_owned(),
        ahead => format!("With {ahead} minibatches announced"),
    };
    if fastest.setup == SetUp::Off || !apart(fastest, base) {
        return Some(format!("{title}, no set-up is faster than off by more than its epochs differ among themselves."));
    }
    let ties: Vec<&str> = block
        .runs
        .iter()
        .filter(|run| run.setup != fastest.setup && run.setup != SetUp::Off && !apart(run, fastest))
        .map(|run| run.setup.name())
        .collect();
    let tied = match ties.as_slice() {
        [] => String::new(),
        names => format!(" ({} cannot be told from it by time)", names.join(", ")),
    };
    Some(format!(
        "{title}, {} is the fastest{tied}: {:.2} s an epoch against {:.2} s of off, {:.2} times as long.",
        fastest.setup,
        fastest.epoch_s_median,
        base.epoch_s_median,
        fastest.epoch_s_median / base.epoch_s_median
    ))
}

/// What the language model is worth against a coin, a clock, and no model.
fn model(block: &Block, ranks: u32) -> Vec<String> {
    let mut sentences = Vec::new();
    let rows = |run: &Run| run.steady.rows_per_minibatch(ranks);
    for run in block.runs.iter().filter(|run| run.setup.needs_model() && run.fallbacks > 0) {
        sentences.push(format!(
            "In {}, {} of {} decisions were the fallback's, because the model was late or silent: they say nothing about the model.",
            run.setup, run.fallbacks, run.decisions
        ));
    }
    if let (Some(model), Some(coin)) = (block.get(SetUp::Llm), block.get(SetUp::Random)) {
        let verdict = match compare(rows(model), rows(coin)) {
            std::cmp::Ordering::Less => "the model fetches fewer rows than the coin",
            std::cmp::Ordering::Equal => "the model is no better than the coin",
            std::cmp::Ordering::Greater => "the model is worse than the coin",
        };
        sentences.push(format!(
            "Deciding yes or no over scored replacement, {verdict}: {} rows a minibatch against {}, {} hits against {}, {} of {} decisions to replace.",
            tidy(rows(model)),
            tidy(rows(coin)),
            percent(model.hit_rate),
            percent(coin.hit_rate),
            model.decisions_acted,
            model.decisions,
        ));
    }
    if let (Some(model), Some(plain)) = (block.get(SetUp::LlmCohorts), block.get(SetUp::Lfu)) {
        let verdict = match compare(rows(model), rows(plain)) {
            std::cmp::Ordering::Less => "fetches fewer rows than",
            std::cmp::Ordering::Equal => "is no better by rows than",
            std::cmp::Ordering::Greater => "fetches more rows than",
        };
        sentences.push(format!(
            "LFU with the model's quotas {verdict} LFU alone: {} rows a minibatch against {}, for {:.1} s of processor time.",
            tidy(rows(model)),
            tidy(rows(plain)),
            model.model_cpu_s,
        ));
    }
    if let (Some(model), Some(plain)) = (block.get(SetUp::Llm), block.get(SetUp::Lfu))
        && compare(rows(plain), rows(model)).is_lt()
    {
        sentences.push(format!(
            "LFU, which asks nobody, fetches {} of the rows of the model's scored replacement.",
            percent(rows(plain) / rows(model))
        ));
    }
    sentences
}

/// What knowing the next minibatches is worth.
fn lookahead(blocks: &[Block], ranks: u32) -> Option<String> {
    let known = blocks.iter().find_map(|block| block.get(SetUp::Window).map(|run| (block, run)))?;
    let (block, window) = known;
    let plain = block.get(SetUp::Lfu)?;
    let (ahead, rows) = (block.lookahead, |run: &Run| run.steady.rows_per_minibatch(ranks));
    let off = block.base().map_or(String::new(), |off| format!(", and no policy at all {}", tidy(rows(off))));
    Some(format!(
        "With the same {ahead} minibatches announced, keeping what they want (window) fetches {} rows a minibatch, LFU {}{off}.",
        tidy(rows(window)),
        tidy(rows(plain))
    ))
}

/// Whether two runs' epoch times differ by more than either's own epochs do.
fn apart(a: &Run, b: &Run) -> bool {
    let spread = |run: &Run| {
        let later = &run.epoch_s[usize::from(run.epoch_s.len() > 1)..];
        let (low, high) = later.iter().fold((f64::MAX, 0f64), |(low, high), &s| (low.min(s), high.max(s)));
        (high - low).max(0.0)
    };
    (a.epoch_s_median - b.epoch_s_median).abs() > spread(a).max(spread(b))
}

fn compare(a: f64, b: f64) -> std::cmp::Ordering {
    if (a - b).abs() <= ROWS_ALIKE * b.abs() { std::cmp::Ordering::Equal } else { a.total_cmp(&b) }
}

#[cfg(test)]
mod tests {
    //! Goal: the sentences flatter nobody. Method: documents with known numbers, good and bad for the model.

    use super::super::tests::sample;
    use super::*;

    fn rows(document: &mut Document, setup: SetUp, rows: u64) {
        let run = document.runs.iter_mut().find(|run| run.setup == setup).unwrap();
        (run.steady.demand_rows, run.steady.prefetched_rows) = (rows, 0);
    }

    fn said(document: &Document) -> String {
        sentences(document).join("\n")
    }

    #[test]
    fn the_model_is_called_no_better_than_the_coin_when_it_is_not() {
        let mut document = sample();
        for (count, words) in [
            (1_000_000, "no better than the coin"),
            (1_010_000, "no better than the coin"),
            (1_100_000, "worse than the coin"),
            (900_000, "fewer rows than the coin"),
        ] {
            rows(&mut document, SetUp::Random, 1_000_000);
            rows(&mut document, SetUp::Llm, count);
            let said = said(&document);
            assert!(said.contains(words), "{count}: {said}");
        }
    }

    #[test]
    fn losses_that_differ_are_denounced() {
        let mut document = sample();
        assert!(said(&document).contains("bit for bit"));
        document.runs[3].series.loss[5] += 1e-6;
        assert!(said(&document).contains("differ from minibatch 5 on"));
    }

    #[test]
    fn times_within_the_spread_are_not_told_apart() {
        let mut document = sample();
        for run in &mut document.runs {
            (run.epoch_s, run.epoch_s_median) = (vec![2.0, 1.0, 1.2, 1.4], 1.2);
        }
        document.runs[4].epoch_s_median = 1.1;
        assert!(said(&document).contains("no set-up is faster than off"));
    }
}
