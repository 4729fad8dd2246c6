//! Leaves a trained pilot as a quantized GGUF file.

use super::network::{BASE, CONTEXT, EPSILON, HEADS, HIDDEN, LAYERS, Network, WIDTH};
use super::vocabulary::Vocabulary;
use anyhow::{Context, Result};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use rudder::controller::llm::{MARGIN_KEY, PROMPT, PROMPT_KEY};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Matrices in 8 bits a number, all else in 32, and the margin by which it is followed.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, network: &Network, vocabulary: &Vocabulary, margin: f64) -> Result<()> {
    let texts = |texts: &[String]| Value::Array(texts.iter().cloned().map(Value::String).collect());
    let number = |value: usize| Value::U32(value as u32);
    let metadata = [
        ("general.architecture", Value::String("llama".to_owned())),
        ("general.name", Value::String("rudder pilot".to_owned())),
        ("general.license", Value::String("Apache-2.0 OR MIT".to_owned())),
        (PROMPT_KEY, Value::U32(PROMPT)),
        (MARGIN_KEY, Value::F32(margin as f32)),
        ("llama.context_length", number(CONTEXT)),
        ("llama.embedding_length", number(WIDTH)),
        ("llama.block_count", number(LAYERS)),
        ("llama.feed_forward_length", number(HIDDEN)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(EPSILON as f32)),
        ("llama.rope.freq_base", Value::F32(BASE as f32)),
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", texts(&vocabulary.tokens)),
        ("tokenizer.ggml.merges", texts(&vocabulary.merges)),
        ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1); vocabulary.tokens.len()])),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensor = |(name, tensor, turned): (String, &candle_core::Var, bool)| {
        let tensor = if turned { tensor.t()?.contiguous()? } else { tensor.as_tensor().clone() };
        let kind = if tensor.rank() == 2 { GgmlDType::Q8_0 } else { GgmlDType::F32 };
        Ok((name, QTensor::quantize(&tensor, kind)?))
    };
    let tensors = network.named().into_iter().map(tensor).collect::<Result<Vec<(String, QTensor)>>>()?;
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = BufWriter::new(File::create(path).with_context(|| path.display().to_string())?);
    gguf_file::write(&mut file, &metadata, &tensors).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    //! Goal: what was trained is what decides: the loader's answers are the network's, and each word is one token. Method: a network that is only drawn.
    use super::*;
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rudder::controller::llm::{LocalScorer, Scorer, ScorerLimits};
    use rudder::controller::planner::{PLANS, Situation, words};

    /// Rounds all matrices as the file does: what is left between the two is what the loader rounds while it computes.
    fn round(network: &Network) {
        for (_, tensor, turned) in network.named().into_iter().filter(|(_, tensor, _)| tensor.rank() == 2) {
            let as_kept =
                if turned { tensor.t().unwrap().contiguous().unwrap() } else { tensor.as_tensor().copy().unwrap() };
            let rounded = QTensor::quantize(&as_kept, GgmlDType::Q8_0).unwrap().dequantize(&Device::Cpu).unwrap();
            tensor.set(&if turned { rounded.t().unwrap().contiguous().unwrap() } else { rounded }).unwrap();
        }
    }

    #[test]
    fn the_loader_answers_as_the_network_does() {
        let vocabulary = Vocabulary::new();
        let network = Network::drawn(vocabulary.tokens.len(), &mut Xoshiro256PlusPlus::seed_from_u64(3)).unwrap();
        round(&network);
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), &network, &vocabulary, 0.0).unwrap();
        let mut scorer = LocalScorer::load(file.path(), ScorerLimits::default()).unwrap();
        let (names, numbers) = words();
        for word in names.iter().map(|name| (*name).to_owned()).chain(numbers.iter().map(u64::to_string)) {
            assert_eq!(scorer.tokenizer().encode(&format!(" {word}")).unwrap().len(), 1, "{word}");
        }
        for plan in &PLANS {
            assert_eq!(scorer.tokenizer().encode(plan.name).unwrap().len(), 1, "{}", plan.name);
        }
        let situation =
            Situation { announced: 3, hits_before: Some(0.2), costs: [Some(1.1); 6], ..Situation::default() };
        let (job, text) = (situation.job(), situation.text());
        let (prefix, rest) = scorer.count_tokens(&job, &text).unwrap();
        assert_eq!((prefix, rest), (job.split_whitespace().count() + 1, text.split_whitespace().count() + 4));

        let tokens = |text: &str| scorer.tokenizer().encode(text).unwrap();
        let prompt = scorer.prompt_tokens(&job, &text).unwrap();
        let answers: Vec<u32> = PLANS.iter().map(|plan| tokens(plan.name)[0]).collect();
        let logits = network.logits(&[prompt], &answers).unwrap();
        let expected = candle_nn::ops::log_softmax(&logits, 1).unwrap().squeeze(0).unwrap().to_vec1::<f32>().unwrap();
        let scores = scorer.score(&job, &text, &PLANS.map(|plan| plan.name)).unwrap();
        for ((plan, score), expected) in PLANS.iter().zip(&scores).zip(&expected) {
            assert!((score - expected).abs() < 0.05, "{}: {score} and {expected}", plan.name);
        }
        assert!(expected.iter().any(|one| (one - expected[0]).abs() > 0.2), "the answers differ: {expected:?}");
    }
}
