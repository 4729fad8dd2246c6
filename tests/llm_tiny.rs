//! The language-model path without the real model.
//!
//! Goal: any file that is not a sound model of our kind is refused in plain words, without a panic and without memory beyond its size; a sound
//! one of any small shape runs end to end, Gemma 3 as published; a slow one is shown what its decisions did; and the host's service outlives
//! whatever ranks send.
//! Method: the tests write tiny random GGUF files themselves, then damage them everywhere; Gemma's answers are held against a plain
//! implementation of our own, see `gemma3`, and against the same with one property of the architecture taken away; the expected tokens are
//! those of Google's `sentencepiece` for a model of these pieces and scores; a model is slow where a scorer answers on demand.

#![cfg(feature = "llm")]

mod gemma3;
mod shortage;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::bootstrap::{Bootstrap, local};
use rudder::controller::llm::{
    CohortsConfig, LlmReplace, LlmService, LocalScorer, MARGIN_KEY, ModelSource, PROMPT, PROMPT_KEY, RemoteScorer,
    ReplaceConfig, Scorer, ScorerLimits, ServiceConfig,
};
use rudder::controller::{Cohort, ControllerConfig, ControllerRuntime, Decision, JobFacts, Observation, RuntimeConfig};
use rudder::{BufferSize, Config, Engine, NodeId, PartitionBook, PartitionId, TableId, TableSpec};
use std::io::{Cursor, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
const WIDTH: usize = 64;

/// A folder of one test's own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rudder-tiny-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The characters by which byte-level BPE writes the 256 bytes.
fn byte_characters() -> Vec<String> {
    let printable = |byte: &u32| (33..127).contains(byte) || (161..173).contains(byte) || (174..256).contains(byte);
    let mut others = 256..;
    let character = |byte: u32| if printable(&byte) { byte } else { others.next().unwrap() };
    (0..256).map(character).map(|code| char::from_u32(code).unwrap().to_string()).collect()
}

fn tiny(change: impl FnOnce(&mut Vec<(String, Value)>)) -> Vec<u8> {
    let texts = |texts: &[String]| Value::Array(texts.iter().cloned().map(Value::String).collect());
    let mut tokens = byte_characters();
    tokens.extend(["<|im_start|>", "<|im_end|>", "Ye", "Yes", "No"].map(String::from));
    let kinds = (0..tokens.len()).map(|id| Value::I32(if (256..258).contains(&id) { 3 } else { 1 })).collect();
    let merges = ["Y e", "Ye s", "N o"].map(String::from);
    let mut metadata = vec![
        ("general.architecture".to_owned(), Value::String("llama".into())),
        ("llama.context_length".into(), Value::U32(4096)),
        ("llama.block_count".into(), Value::U32(2)),
        ("llama.embedding_length".into(), Value::U32(WIDTH as u32)),
        ("llama.feed_forward_length".into(), Value::U32(96)),
        ("llama.attention.head_count".into(), Value::U32(4)),
        ("llama.attention.head_count_kv".into(), Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5)),
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String("smollm".into())),
        ("tokenizer.ggml.tokens".into(), texts(&tokens)),
        ("tokenizer.ggml.token_type".into(), Value::Array(kinds)),
        ("tokenizer.ggml.merges".into(), texts(&merges)),
    ];
    change(&mut metadata);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(11);
    let mut tensors =
        vec![("token_embd.weight".to_owned(), vec![tokens.len(), WIDTH]), ("output_norm.weight".into(), vec![WIDTH])];
    for layer in 0..2 {
        for (part, shape) in [
            ("attn_norm", vec![WIDTH]),
            ("attn_q", vec![WIDTH, WIDTH]),
            ("attn_k", vec![32, WIDTH]),
            ("attn_v", vec![32, WIDTH]),
            ("attn_output", vec![WIDTH, WIDTH]),
            ("ffn_norm", vec![WIDTH]),
            ("ffn_gate", vec![96, WIDTH]),
            ("ffn_up", vec![96, WIDTH]),
            ("ffn_down", vec![WIDTH, 96]),
        ] {
            tensors.push((format!("blk.{layer}.{part}.weight"), shape));
        }
    }
    let tensors: Vec<(String, QTensor)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.random_range(-0.5..0.5)).collect();
            let dtype = if shape.len() == 1 { GgmlDType::F32 } else { GgmlDType::Q4_1 };
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            (name, QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    written(&metadata, &tensors)
}

fn written(metadata: &[(String, Value)], tensors: &[(String, QTensor)]) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    file.into_inner()
}

fn tiny_gemma(change: impl FnOnce(&mut Vec<(String, Value)>)) -> Vec<u8> {
    let mut metadata = gemma3::metadata();
    change(&mut metadata);
    written(&metadata, &gemma3::tensors())
}

fn set(key: &'static str, value: Value) -> impl FnOnce(&mut Vec<(String, Value)>) {
    move |metadata| {
        metadata.retain(|(name, _)| name != key);
        metadata.push((key.into(), value));
    }
}

fn rename_token(metadata: &mut [(String, Value)], from: &str, to: &str) {
    let tokens = metadata.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens");
    let Some((_, Value::Array(tokens))) = tokens else { panic!("the file has no tokens") };
    tokens.iter_mut().for_each(|token| {
        if matches!(token, Value::String(text) if text == from) {
            *token = Value::String(to.into());
        }
    });
}

fn load(path: &std::path::Path) -> rudder::Result<LocalScorer> {
    LocalScorer::load(path, ScorerLimits::default())
}

#[test]
fn a_tiny_model_scores_a_closed_set() {
    let folder = Folder::new("scores");
    let mut scorer = load(&folder.file("tiny.gguf", &tiny(|_| {}))).unwrap();
    assert_eq!(scorer.tokenizer().encode("Yes<|im_end|>No1").unwrap(), [259, 257, 260, u32::from(b'1')]);
    let labels = ["Yes", "No", "Neither"];
    let scores = scorer.score("A prefix.", "A question?", &labels).unwrap();
    let sum: f32 = scores.iter().map(|score| score.exp()).sum();
    assert!((sum - 1.0).abs() < 1e-4, "{scores:?}");
    let fresh = load(&folder.0.join("tiny.gguf")).unwrap().score("A prefix.", "A question?", &labels).unwrap();
    assert_eq!(fresh, scores);
}

#[test]
fn other_models_are_refused_by_name() {
    let folder = Folder::new("others");
    let text = |text: &str| Value::String(text.into());
    let without = |tensor: &str| {
        let mut tensors = gemma3::tensors();
        tensors.retain(|(name, _)| name != tensor);
        written(&gemma3::metadata(), &tensors)
    };
    let scores = |count| Value::Array(vec![Value::F32(0.0); count]);
    let cases: [(&str, Vec<u8>); 18] = [
        ("architecture \"gemma2\"", tiny(set("general.architecture", text("gemma2")))),
        ("kind \"bert\"", tiny(set("tokenizer.ggml.model", text("bert")))),
        ("\"chameleon\"", tiny(set("tokenizer.ggml.pre", text("chameleon")))),
        ("scaled rotary", tiny(set("llama.rope.scaling.type", text("yarn")))),
        ("do not fit together", tiny(set("llama.attention.head_count_kv", Value::U32(3)))),
        ("has shape", tiny(set("llama.embedding_length", Value::U32(128)))),
        ("blk.2.attn_norm.weight is missing", tiny(set("llama.block_count", Value::U32(3)))),
        ("general.alignment", tiny(set("general.alignment", Value::U32(0)))),
        ("27 billion", tiny_gemma(set("gemma3.block_count", Value::U32(62)))),
        ("scaled rotary", tiny_gemma(set("gemma3.rope.scaling.type", text("linear")))),
        ("capped logits", tiny_gemma(set("gemma3.final_logit_softcapping", Value::F32(30.0)))),
        ("sliding_window is 0", tiny_gemma(set("gemma3.attention.sliding_window", Value::U32(0)))),
        ("blk.6.attn_k_norm.weight is missing", without("blk.6.attn_k_norm.weight")),
        ("blk.0.post_ffw_norm.weight is missing", without("blk.0.post_ffw_norm.weight")),
        ("3 scores for", tiny_gemma(set("tokenizer.ggml.scores", scores(3)))),
        ("not an array of numbers", tiny_gemma(set("tokenizer.ggml.scores", Value::Array(Vec::new())))),
        ("lacks the token <0xAB>", tiny_gemma(|metadata| rename_token(metadata, "<0xAB>", "<0xab>"))),
        ("appears twice", tiny_gemma(|metadata| rename_token(metadata, "hello", "he"))),
    ];
    for (cause, bytes) in cases {
        let error = load(&folder.file("other.gguf", &bytes)).err().expect(cause).to_string();
        assert!(error.contains(cause) && error.contains("other.gguf"), "{error}");
    }
    let error = load(&folder.0.join("absent.gguf")).err().unwrap().to_string();
    assert!(error.contains("cannot open"), "{error}");
    assert!(load(&folder.0).err().unwrap().to_string().contains("not a regular file"));
}

#[test]
fn a_model_that_was_not_trained_to_be_the_pilot_is_refused() {
    let folder = Folder::new("pilot");
    let build = |bytes: &[u8]| {
        let file = folder.file("model.gguf", bytes);
        let pilot: ControllerConfig = format!("pilot:{}", file.display()).parse().unwrap();
        pilot.build(&JobFacts::default()).map(|_| ()).map_err(|cause| cause.to_string())
    };
    let stranger = build(&tiny(|_| {})).unwrap_err();
    assert!(stranger.contains("no pilot") && stranger.contains("model.gguf"), "{stranger}");
    let of_version = |version| tiny(set(PROMPT_KEY, Value::U32(version)));
    let later = build(&of_version(PROMPT + 1)).unwrap_err();
    assert!(later.contains(&format!("version {}", PROMPT + 1)) && later.contains("train it again"), "{later}");
    let sound = of_version(PROMPT);
    assert_eq!(build(&sound), Ok(()), "without a margin it is followed always");
    assert!(build(&sound[..sound.len() / 2]).unwrap_err().contains("truncated"));
    let of_margin = |margin| {
        tiny(|metadata| {
            set(PROMPT_KEY, Value::U32(PROMPT))(metadata);
            set(MARGIN_KEY, margin)(metadata);
        })
    };
    assert_eq!(build(&of_margin(Value::F32(0.3))), Ok(()));
    for margin in [-0.1, 1.5, f32::NAN] {
        let cause = build(&of_margin(Value::F32(margin))).unwrap_err();
        assert!(cause.contains(MARGIN_KEY) && cause.contains("0 to 1 is supported"), "{cause}");
    }
    assert!(build(&of_margin(Value::String("wide".into()))).unwrap_err().contains("is not a number"));
}

#[test]
fn a_damaged_file_never_panics() {
    let folder = Folder::new("damage");
    for sound in [tiny(|_| {}), tiny_gemma(|_| {})] {
        for length in (0..sound.len()).step_by(sound.len() / 60) {
            let error = load(&folder.file("short.gguf", &sound[..length]))
                .err()
                .unwrap_or_else(|| panic!("{length} bytes suffice"));
            assert!(!error.to_string().contains("panic"), "{length} bytes: {error}");
        }
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        for _ in 0..150 {
            let mut bytes = sound.clone();
            // The header is where lengths are.
            let place = random.random_range(0..8000.min(bytes.len()));
            let value: u8 = random.random();
            bytes[place] = value;
            match load(&folder.file("flipped.gguf", &bytes)) {
                Ok(mut scorer) => _ = scorer.score("A prefix.", "A question?", &["Yes", "No"]),
                Err(error) => assert!(!error.to_string().contains("panic"), "byte {place} = {value}: {error}"),
            }
        }
    }
}

/// Answers of one token each.
const LETTERS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "x", "y", "z", "A", "B", "?"];

/// The reference's log-probability of each letter after a prompt.
fn expected(plain: &gemma3::Plain, prompt: &[u32]) -> Vec<f32> {
    let logits = plain.logits(prompt, &LETTERS.map(gemma3::piece));
    let norm = logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
    logits.iter().map(|logit| logit - norm).collect()
}

fn farthest(scores: &[f32], expected: &[f32]) -> f32 {
    scores.iter().zip(expected).map(|(score, expected)| (score - expected).abs()).fold(0.0, f32::max)
}

/// What the library's rounding of states to 8 bits may move a log-probability by, where these are as low as -8.
const ROUNDING: f32 = 0.3;

#[test]
fn gemma_answers_as_a_plain_implementation_does() {
    let folder = Folder::new("gemma");
    let mut scorer = load(&folder.file("gemma.gguf", &tiny_gemma(|_| {}))).unwrap();
    let plain = gemma3::Plain::new();
    // Shorter than the window of its local layers, longer, and longer than what is evaluated at once.
    let long = "hello world ".repeat(20);
    for prefix in ["", "The buffer holds rows of remote nodes", long.as_str()] {
        for text in ["a", "Hits fell from 60 to 20, and what now?"] {
            let prompt = scorer.prompt_tokens(prefix, text).unwrap();
            let expected = expected(&plain, &prompt);
            // At the second time the prefix is in the cache.
            for _ in 0..2 {
                let scores = scorer.score(prefix, text, &LETTERS).unwrap();
                let off = farthest(&scores, &expected);
                println!("{} tokens: off by {off}", prompt.len());
                assert!(off < ROUNDING, "{} tokens: {scores:?} where {expected:?} is expected", prompt.len());
            }
            let mut fresh = load(&folder.0.join("gemma.gguf")).unwrap();
            assert_eq!(fresh.score(prefix, text, &LETTERS).unwrap(), scorer.score(prefix, text, &LETTERS).unwrap());
        }
    }
}

/// Takes a property away from the reference.
type TakeAway = fn(&mut gemma3::Plain);

#[test]
fn each_property_of_gemma_matters_to_that_comparison() {
    let folder = Folder::new("properties");
    let mut scorer = load(&folder.file("gemma.gguf", &tiny_gemma(|_| {}))).unwrap();
    let (prefix, text) = ("The buffer holds rows of remote nodes", "Hits fell from 60 to 20, and what now?");
    let (prompt, scores) = (scorer.prompt_tokens(prefix, text).unwrap(), scorer.score(prefix, text, &LETTERS).unwrap());
    let properties: [(&str, TakeAway); 11] = [
        ("the window", |plain| plain.window = usize::MAX),
        ("its exact length", |plain| plain.window -= 1),
        ("the global layer", |plain| plain.period = usize::MAX),
        ("which layer that is", |plain| plain.period = 7),
        ("the local base", |plain| plain.local_base = plain.global_base),
        ("the global base", |plain| plain.global_base = plain.local_base),
        ("the embedding's scale", |plain| plain.embedding_scale = 1.0),
        ("where an angle's values lie", |plain| plain.halves = false),
        ("GELU", |plain| plain.gelu = false),
        ("the norms of heads", |plain| plain.head_norms = false),
        ("the norms of what is added", |plain| plain.post_norms = false),
    ];
    for (property, take_away) in properties {
        let mut other = gemma3::Plain::new();
        take_away(&mut other);
        let off = farthest(&scores, &expected(&other, &prompt));
        println!("without {property}: off by {off}");
        assert!(off > 2.0 * ROUNDING, "without {property} the answers are off by {off} only");
    }
}

#[test]
fn tokens_of_a_made_up_sentencepiece_vocabulary_are_right() {
    use gemma3::{BEGIN, BLANK_LINE, TURN, byte, piece};
    let folder = Folder::new("pieces");
    let scorer = load(&folder.file("gemma.gguf", &tiny_gemma(|_| {}))).unwrap();
    let pieces = |texts: &[&str]| texts.iter().map(|text| piece(text)).collect::<Vec<_>>();
    let bytes = |text: &str| text.bytes().map(byte).collect::<Vec<_>>();
    let cases = [
        ("hello", pieces(&["hello"])),
        // The best score first: not "ab" and "c".
        ("abc", pieces(&["a", "bc"])),
        ("ab c", pieces(&["ab", "▁", "c"])),
        ("hello world", pieces(&["hello", "▁w", "o", "r", "l", "d"])),
        (" hell  ", pieces(&["▁", "hell", "▁▁"])),
        // From the left where scores are equal.
        ("aaaa", pieces(&["aa", "aa"])),
        ("aaaaa", pieces(&["aa", "aaa"])),
        ("wor", pieces(&["w", "o", "r"])),
        ("né1", [pieces(&["n"]), bytes("é"), pieces(&["1"])].concat()),
        ("😀", bytes("😀")),
        // What looks like a byte's token is text.
        ("<0x41>", [bytes("<"), pieces(&["0", "x", "4", "1"]), bytes(">")].concat()),
        ("a\n\n\nb", [pieces(&["a"]), vec![BLANK_LINE], bytes("\n"), pieces(&["b"])].concat()),
        ("<start_of_turn>he<end_of_turn>", vec![TURN[0], piece("he"), TURN[1]]),
    ];
    for (text, tokens) in cases {
        assert_eq!(scorer.tokenizer().encode(text).unwrap(), tokens, "{text:?}");
        assert_eq!(scorer.tokenizer().decode(&tokens).unwrap(), text);
    }
    let spelled = |text: &str| text.chars().map(|letter| piece(&letter.to_string())).collect::<Vec<_>>();
    let prompt = [
        vec![BEGIN, TURN[0]],
        spelled("user"),
        [bytes("\n"), spelled("p"), vec![BLANK_LINE]].concat(),
        spelled("t"),
        vec![TURN[1], byte(b'\n'), TURN[0]],
        spelled("model"),
        bytes("\n"),
    ];
    assert_eq!(scorer.prompt_tokens("p", "t").unwrap(), prompt.concat(), "the system text goes into the user's turn");

    let spaced = tiny_gemma(set("tokenizer.ggml.add_space_prefix", Value::Bool(true)));
    let spaced = load(&folder.file("spaced.gguf", &spaced)).unwrap();
    let tokens = spaced.tokenizer().encode("wab").unwrap();
    assert_eq!(tokens, pieces(&["▁w", "ab"]));
    assert_eq!(spaced.tokenizer().decode(&tokens).unwrap(), "wab");
}

#[test]
fn the_runtime_runs_it_and_survives_its_absence() {
    let folder = Folder::new("runtime");
    let path = folder.file("tiny.gguf", &tiny(|_| {}));
    for (path, works) in [(path, true), (folder.0.join("absent.gguf"), false)] {
        let config = ReplaceConfig { model: ModelSource::File(path), delta: 4, ..ReplaceConfig::default() };
        let bounds = RuntimeConfig { fallback_delta: 4, ..RuntimeConfig::default() };
        let config = ControllerConfig::LlmReplace(config);
        let runtime = ControllerRuntime::start(&config, &JobFacts::default(), &bounds).unwrap();
        let until = Instant::now() + PATIENCE;
        let mut minibatch = 0;
        while runtime.stats().decisions < 3 {
            assert!(Instant::now() < until, "{:?}", runtime.stats());
            minibatch += 1;
            let hits = Observation { minibatch, remote_nodes: 10, hits: 5, halo_misses: 5, ..Observation::default() };
            runtime.observe(&hits);
            runtime.take_decision();
            std::thread::sleep(Duration::from_millis(2));
        }
        let stats = runtime.stats();
        assert_eq!((stats.fallbacks == 0, stats.failure.is_none()), (works, works), "{stats:?}");
        assert!(!works || stats.model_cpu > Duration::ZERO, "{stats:?}");
    }
}

/// What a process that starts with `RAYON_NUM_THREADS` of this number, and runs the tiny model or asks a service, has of candle afterwards: its
/// variable, and threads.
fn left_by_candle(rayon: &str, model: &str) -> String {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["candle_is_kept_to_one_thread_and_leaves_the_environment_alone_where_it_can", "--exact", "--nocapture"])
        .env_remove("CANDLE_NUM_THREADS")
        .env("RAYON_NUM_THREADS", rayon)
        .env(MODEL_OF_CHILD, model)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    said.lines().find_map(|line| line.strip_prefix("left: ")).unwrap_or_else(|| panic!("{said}")).to_owned()
}

const MODEL_OF_CHILD: &str = "RUDDER_TEST_MODEL_OF_CHILD";

fn run_model_of_child(model: &str) {
    let folder = Folder::new("threads");
    let model = match model {
        "here" => ModelSource::File(folder.file("tiny.gguf", &tiny(|_| {}))),
        _ => ModelSource::Service { socket: folder.0.join("absent"), deadline: Duration::from_millis(10) },
    };
    let config = ControllerConfig::LlmReplace(ReplaceConfig { model, delta: 1, ..ReplaceConfig::default() });
    let runtime = ControllerRuntime::start(&config, &JobFacts::default(), &RuntimeConfig::default()).unwrap();
    let until = Instant::now() + PATIENCE;
    while runtime.stats().latency_max.is_zero() {
        assert!(Instant::now() < until, "{:?}", runtime.stats());
        runtime.observe(&Observation { minibatch: 1, remote_nodes: 10, ..Observation::default() });
        runtime.take_decision();
        std::thread::sleep(Duration::from_millis(2));
    }
    let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("comm"));
    let pool =
        threads.filter(|name| std::fs::read_to_string(name).is_ok_and(|name| name.starts_with("candle-"))).count();
    println!("\nleft: {:?}, {pool} threads", std::env::var("CANDLE_NUM_THREADS").ok());
}

#[test]
fn candle_is_kept_to_one_thread_and_leaves_the_environment_alone_where_it_can() {
    if let Ok(model) = std::env::var(MODEL_OF_CHILD) {
        return run_model_of_child(&model);
    }
    assert_eq!(left_by_candle("4", "here"), r#"Some("1"), 0 threads"#);
    assert_eq!(left_by_candle("1", "here"), "None, 0 threads");
    assert_eq!(left_by_candle("4", "service"), "None, 0 threads");
}

/// Answers when told to, and shows what it is asked.
struct OnDemand {
    prompts: Sender<String>,
    answers: Receiver<Vec<f32>>,
}

impl Scorer for OnDemand {
    fn score(&mut self, _prefix: &str, text: &str, _labels: &[&str]) -> rudder::Result<Vec<f32>> {
        _ = self.prompts.send(text.to_owned());
        self.answers.recv().map_err(|_| rudder::Error::Closed)
    }
}

/// Minibatches of a buffer whose replacements find rows, under a model that answers when told to.
struct Training {
    prompts: Receiver<String>,
    // Goes before the runtime, whose thread may wait for an answer.
    answers: Sender<Vec<f32>>,
    runtime: ControllerRuntime,
    minibatch: u64,
    replaced: bool,
}

impl Training {
    fn new(delta: u64, bounds: &RuntimeConfig) -> Self {
        let (shown, prompts) = channel();
        let (answers, told) = channel();
        let config = ReplaceConfig { delta, calibrate: false, ..ReplaceConfig::default() };
        let facts = JobFacts { slots: 50, ..JobFacts::default() };
        let scorer = Box::new(OnDemand { prompts: shown, answers: told });
        let build = move || Ok(Box::new(LlmReplace::with_scorer(&config, &facts, scorer)?) as _);
        let runtime = ControllerRuntime::threaded("llm-replace", bounds, build).unwrap();
        Self { runtime, prompts, answers, minibatch: 0, replaced: false }
    }

    fn step(&mut self) -> Option<Decision> {
        self.minibatch += 1;
        let replaced_rows = if self.replaced { 10 } else { 0 };
        let (minibatch, remote_nodes) = (self.minibatch, 100);
        self.runtime.observe(&Observation { minibatch, remote_nodes, replaced_rows, ..Observation::default() });
        let decision = self.runtime.take_decision();
        self.replaced = decision.as_ref().is_some_and(|decision| decision.replace);
        decision
    }

    fn step_until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(outcome) = done(self) {
                return outcome;
            }
            assert!(Instant::now() < until, "{:?}", self.runtime.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn step_to_prompt(&mut self) -> String {
        self.step_until(|training| {
            training.step();
            training.prompts.try_recv().ok()
        })
    }
}

#[test]
fn a_slow_model_is_shown_what_its_replacement_did() {
    let delta = 4;
    let mut training = Training::new(delta, &RuntimeConfig::default());
    training.step_to_prompt();
    (0..3 * delta).for_each(|_| assert_eq!(training.step(), None, "the model still thinks"));
    training.answers.send(vec![0.0, -9.0]).unwrap();
    training.step_until(Training::step);
    let prompt = training.step_to_prompt();
    assert!(prompt.contains(": replaced 20%"), "{prompt}");
}

#[test]
fn the_fallbacks_replacement_is_not_taken_for_a_late_models() {
    let bounds =
        RuntimeConfig { decision_deadline: Duration::from_millis(20), fallback_delta: 4, ..RuntimeConfig::default() };
    // More minibatches than pass before the answer, so that the fallback's replacement is seen while one of the model's would be awaited.
    let mut training = Training::new(64, &bounds);
    training.step_to_prompt();
    training.step_until(Training::step);
    assert_eq!(training.runtime.stats().fallback_decisions, 1);
    training.step();
    training.answers.send(vec![0.0, -9.0]).unwrap();
    let prompt = training.step_to_prompt();
    assert!(prompt.contains(": no answer") && !prompt.contains("replaced"), "{prompt}");
}

#[test]
fn an_engine_counts_cohorts_for_a_controller_that_decides_by_them() {
    let model = ModelSource::Service { socket: "absent".into(), deadline: Duration::from_millis(10) };
    let config = Config {
        controller: ControllerConfig::LlmCohorts(CohortsConfig { model, ..CohortsConfig::default() }),
        transport: "shm".into(),
        map_host_rows: false,
        buffer: BufferSize::Halo(0.2),
        ..Config::default()
    };
    let gather = |bootstrap: local::LocalBootstrap| {
        let me = bootstrap.rank().0;
        let book = PartitionBook::from_starts(vec![0, 50, 100]).unwrap();
        let others: Vec<NodeId> = book.range(PartitionId(1 - me)).map(NodeId).collect();
        let (halo, degree) = (others.clone(), vec![1; others.len()]);
        let spec = TableSpec { halo, degree, ..TableSpec::new(TableId(0), book, PartitionId(me), 8) };
        let engine = Engine::builder(config.clone(), Arc::new(bootstrap)).table(spec, |_| ()).start().unwrap();
        for nodes in others.chunks(25) {
            engine.gather(TableId(0), nodes, None, &mut vec![0; nodes.len() * 8]).unwrap();
        }
        let seen = engine.observations();
        engine.shutdown().unwrap();
        seen.last().unwrap().cohort_misses.clone()
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = local::ranks(2).into_iter().map(|rank| scope.spawn(|| gather(rank))).collect();
        for rank in ranks {
            let misses = rank.join().unwrap();
            assert_eq!((misses.len(), misses.iter().sum::<u32>()), (Cohort::count(2), 25), "{misses:?}");
        }
    });
}

#[test]
fn the_service_outlives_dead_ranks_and_garbage() {
    let folder = Folder::new("service");
    let model = folder.file("tiny.gguf", &tiny(|_| {}));
    let config = ServiceConfig { clients: 8, ..ServiceConfig::new(model, folder.0.join("socket")) };
    let service = LlmService::start(&config).unwrap();
    assert!(LlmService::start(&config).unwrap_err().to_string().contains("another service listens"));
    let mut rank = RemoteScorer::new(&config.socket, PATIENCE);
    let first = rank.score("A prefix.", "A question?", &["Yes", "No"]).unwrap();

    let garbage: [&[u8]; 5] = [b"", b"\x05", b"\xff\xff\xff\xff", b"\x03\0\0\0{x}", b"\x10\0\0\0{\"prefix\":"];
    for bytes in garbage {
        let mut stream = UnixStream::connect(&config.socket).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
        assert_eq!(rank.score("A prefix.", "A question?", &["Yes", "No"]).unwrap(), first);
    }
    let mut stream = UnixStream::connect(&config.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"\x03\0\0\0{x}").unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert!(String::from_utf8_lossy(&reply).contains("not a request"), "{reply:?}");

    // A rank that asks and dies before the answer.
    let body = br#"{"prefix":"p","text":"t","labels":["Yes","No"],"patience":{"secs":5,"nanos":0}}"#;
    let mut stream = UnixStream::connect(&config.socket).unwrap();
    stream.write_all(&(body.len() as u32).to_le_bytes()).unwrap();
    stream.write_all(body).unwrap();
    drop(stream);
    let error = rank.score("A prefix.", "A question?", &["Yes", "Yes"]).unwrap_err().to_string();
    assert!(error.contains("begins another"), "{error}");
    assert_eq!(rank.score("A prefix.", "A question?", &["Yes", "No"]).unwrap(), first);
    drop(service);
    let error = rank.score("A prefix.", "A question?", &["Yes", "No"]).unwrap_err().to_string();
    assert!(error.contains("does not answer"), "{error}");
}

#[test]
fn a_service_for_nobody_or_for_far_too_many_is_refused() {
    let folder = Folder::new("clients");
    let model = folder.file("tiny.gguf", &tiny(|_| {}));
    for clients in [0, 1025, usize::MAX] {
        let config = ServiceConfig { clients, ..ServiceConfig::new(&model, folder.0.join("socket")) };
        let error = LlmService::start(&config).unwrap_err().to_string();
        assert!(error.contains("give 1 to 1024 clients"), "{error}");
    }
}

#[test]
fn a_silent_service_costs_a_rank_its_deadline_only() {
    let folder = Folder::new("silent");
    let socket = folder.0.join("socket");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut rank = RemoteScorer::new(&socket, Duration::from_millis(50));
    let start = Instant::now();
    assert!(rank.score("p", "t", &["Yes", "No"]).is_err());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_forked_child_drops_a_service_and_leaves_it_serving() {
    let folder = Folder::new("forked");
    let model = folder.file("tiny.gguf", &tiny(|_| {}));
    let config = ServiceConfig::new(model, folder.0.join("socket"));
    let service = LlmService::start(&config).unwrap();
    let mut rank = RemoteScorer::new(&config.socket, PATIENCE);
    let first = rank.score("A prefix.", "A question?", &["Yes", "No"]).unwrap();
    // SAFETY: the child drops the service, which takes no lock in a child, and ends by `_exit`, or by the alarm.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the alarm's default action ends the child.
            unsafe { libc::alarm(4) };
            drop(service);
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(0) }
        }
        child => {
            assert!(child > 0, "fork failed");
            let mut status = -1;
            // SAFETY: waits for the child just made.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(status, 0, "the child waited for threads that it does not have");
        }
    }
    assert_eq!(rank.score("A prefix.", "A question?", &["Yes", "No"]).unwrap(), first, "the connection is still there");
    let mut late = RemoteScorer::new(&config.socket, PATIENCE);
    assert_eq!(late.score("A prefix.", "A question?", &["Yes", "No"]).unwrap(), first, "and so is the socket");
    drop(service);
}

#[test]
fn the_service_goes_on_when_descriptors_run_out() {
    shortage::in_a_process_of_its_own("the_service_goes_on_when_descriptors_run_out", || {
        let folder = Folder::new("descriptors");
        let model = folder.file("tiny.gguf", &tiny(|_| {}));
        let config = ServiceConfig::new(model, folder.0.join("socket"));
        let _service = LlmService::start(&config).unwrap();
        let waiting =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
        let shortage = shortage::Shortage::begin();
        rustix::net::connect(&waiting, &rustix::net::SocketAddrUnix::new(&config.socket).unwrap()).unwrap();
        shortage::assert_rests(Duration::from_millis(600));
        drop(shortage);
        RemoteScorer::new(&config.socket, PATIENCE).score("A prefix.", "A question?", &["Yes", "No"]).unwrap();
    });
}
