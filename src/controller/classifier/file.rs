//! The file of a trained classifier: JSON with a version and a checksum.
//!
//! The checksum is of what was read, written again: numbers survive a round trip to the bit, so that a file in which one digit has changed is
//! refused, and one that was only reformatted is not.

use super::features::{FEATURES, Values};
use super::model::Model;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// The version of the file's layout. It also changes when a feature comes to mean something else.
pub const FORMAT: u32 = 2;
/// Most bytes of a file.
const BYTES_MAX: u64 = 64 << 20;
/// Most minibatches between two decisions.
const INTERVAL_MAX: u64 = 1 << 20;

/// A classifier, trained.
///
/// ```
/// use rudder::controller::classifier::{FEATURES, Feature, Linear, Model, Trained};
///
/// let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.0, deviation: 1.0 };
/// let never = Trained {
///     name: "never".into(),
///     training: "by hand".into(),
///     interval: 8,
///     features: FEATURES.iter().map(feature).collect(),
///     model: Model::Linear(Linear { weights: vec![0.0; FEATURES.len()], bias: -1.0 }),
/// };
/// let file = tempfile::NamedTempFile::new().expect("a directory for temporary files");
/// never.write(file.path())?;
/// assert_eq!(Trained::read(file.path())?, never);
/// # Ok::<(), rudder::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trained {
    /// What it is called, such as `logistic`.
    pub name: String,
    /// What it was trained on and how, in words.
    pub training: String,
    /// Minibatches between two decisions.
    pub interval: u64,
    /// The features, in their order.
    pub features: Vec<Feature>,
    /// What was learnt.
    pub model: Model,
}

/// How a feature is normalised: less its mean, over its standard deviation, both those of the training samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Its mean.
    pub mean: f64,
    /// Its standard deviation.
    pub deviation: f64,
}

/// The file.
#[derive(Deserialize, Serialize)]
struct Document<T> {
    format: u32,
    question: String,
    crc32: u32,
    classifier: T,
}

/// What any version of the file has, and what this one has of any question.
#[derive(Deserialize)]
struct Version {
    format: u32,
    #[serde(default)]
    question: String,
}

/// What a file can hold.
pub(super) trait Kept: Serialize + DeserializeOwned + Clone {
    /// What it answers, in a word.
    const QUESTION: &'static str;
    /// The command that makes it.
    const COMMAND: &'static str;

    /// Refuses numbers that do not fit together.
    fn check(&self) -> Result<(), String>;
}

/// Reads a file.
pub(super) fn read<T: Kept>(path: &Path) -> Result<T> {
    let wrong = |cause: String| Error::config(format!("classifier {}: {cause}", path.display()));
    let file = std::fs::File::open(path).map_err(|cause| wrong(cause.to_string()))?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|cause| wrong(cause.to_string()))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(wrong(format!("the file has more than {BYTES_MAX} bytes")));
    }
    parse(&bytes).map_err(wrong)
}

/// Writes a file.
pub(super) fn write<T: Kept>(classifier: &T, path: &Path) -> Result<()> {
    let wrong = |cause: String| Error::config(format!("classifier {}: {cause}", path.display()));
    classifier.check().map_err(wrong)?;
    let document = Document {
        format: FORMAT,
        question: T::QUESTION.to_owned(),
        crc32: checksum(classifier),
        classifier: classifier.clone(),
    };
    let text = serde_json::to_vec(&document).map_err(|cause| wrong(cause.to_string()))?;
    std::fs::write(path, text).map_err(|cause| wrong(cause.to_string()))
}

fn parse<T: Kept>(bytes: &[u8]) -> Result<T, String> {
    let remedy = format!("make it again with `{}`", T::COMMAND);
    let Version { format, question } =
        serde_json::from_slice(bytes).map_err(|cause| format!("no classifier, or a damaged one: {cause}; {remedy}"))?;
    if format != FORMAT {
        return Err(format!("its format is {format}, and this version of rudder reads {FORMAT}: {remedy}"));
    }
    if question != T::QUESTION {
        return Err(format!("it answers the question {question:?} and not {:?}: {remedy}", T::QUESTION));
    }
    let document: Document<T> = serde_json::from_slice(bytes).map_err(|cause| format!("damaged: {cause}; {remedy}"))?;
    document.classifier.check()?;
    if checksum(&document.classifier) != document.crc32 {
        return Err(format!("damaged: its checksum is not that of its numbers; {remedy}"));
    }
    Ok(document.classifier)
}

fn checksum(classifier: &impl Serialize) -> u32 {
    crc32fast::hash(&serde_json::to_vec(classifier).unwrap_or_default())
}

/// Refuses features that are not these, or cannot be normalised.
pub(super) fn check_features(features: &[Feature], names: &[&str]) -> Result<(), String> {
    if !features.iter().map(|feature| feature.name.as_str()).eq(names.iter().copied()) {
        return Err(format!("its features are not those of this version of rudder: {}", names.join(", ")));
    }
    let normal = |feature: &Feature| feature.mean.is_finite() && feature.deviation.is_normal();
    match features.iter().find(|feature| !normal(feature)) {
        Some(feature) => Err(format!("feature {} cannot be normalised: {feature:?}", feature.name)),
        None => Ok(()),
    }
}

/// Normalises values of features.
pub(super) fn normalise(values: &mut [f64], features: &[Feature]) {
    for (value, feature) in values.iter_mut().zip(features) {
        *value = (*value - feature.mean) / feature.deviation;
    }
}

impl Kept for Trained {
    const QUESTION: &'static str = "replace";
    const COMMAND: &'static str = "rudder fit";

    fn check(&self) -> Result<(), String> {
        if !(1..=INTERVAL_MAX).contains(&self.interval) {
            return Err(format!("it decides every {} minibatches; the most are {INTERVAL_MAX}", self.interval));
        }
        check_features(&self.features, &FEATURES)?;
        self.model.check(self.features.len()).map_err(|cause| format!("its model does not fit together: {cause}"))
    }
}

impl Trained {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is damaged or of another version, or its numbers do not fit together.
    pub fn read(path: &Path) -> Result<Self> {
        read(path)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// It cannot be written, or its numbers do not fit together.
    pub fn write(&self, path: &Path) -> Result<()> {
        write(self, path)
    }

    /// Normalises features.
    pub fn normalised(&self, mut values: Values) -> Values {
        normalise(&mut values, &self.features);
        values
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is read is what was written, to the bit, or an error that says why not. Method: files that are whole, and then damaged in each way.
    use super::*;
    use crate::controller::classifier::{Attention, Dense, Kernel, Linear, Node, Perceptron, Trees};

    fn trained(model: Model) -> Trained {
        let feature = |(at, name): (usize, &&str)| Feature {
            name: (*name).to_owned(),
            mean: 0.1 * at as f64,
            deviation: 1.0 / (at + 3) as f64,
        };
        Trained {
            name: "test".into(),
            training: String::new(),
            interval: 8,
            features: FEATURES.iter().enumerate().map(feature).collect(),
            model,
        }
    }

    fn dense(inputs: usize, outputs: usize) -> Dense {
        Dense { weights: vec![vec![0.1; inputs]; outputs], bias: vec![0.2; outputs] }
    }

    fn linear() -> Model {
        Model::Linear(Linear {
            weights: (0..FEATURES.len()).map(|at| 1.0 / (at as f64 - 7.3)).collect(),
            bias: 0.1 + 0.2,
        })
    }

    /// One of each kind.
    fn models() -> Vec<Model> {
        let features = FEATURES.len();
        let split = Node::Split { feature: 3, at_most: 0.3, left: 1, right: 2 };
        vec![
            linear(),
            Model::Trees(Trees { bias: 0.5, trees: vec![vec![split, Node::Leaf(1.0), Node::Leaf(-1.0)]] }),
            Model::Perceptron(Perceptron { layers: vec![dense(features, 4), dense(4, 1)] }),
            Model::Attention(Attention {
                relaxation: 1.3,
                first: dense(features, 6),
                steps: vec![(dense(3, features), dense(features, 6)); 2],
                last: dense(3, 1),
            }),
            Model::Kernel(Kernel {
                gamma: 0.3,
                vectors: vec![vec![0.7; features]; 2],
                weights: vec![1.0, -0.5],
                bias: 0.1,
            }),
        ]
    }

    fn refused(bytes: &[u8], words: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let cause = Trained::read(file.path()).unwrap_err().to_string();
        assert!(cause.contains(words) && cause.contains(&file.path().display().to_string()), "{words}: {cause}");
    }

    #[test]
    fn what_was_written_is_read_to_the_bit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for model in models() {
            let written = trained(model);
            written.write(file.path()).unwrap();
            assert_eq!(Trained::read(file.path()).unwrap(), written);
            assert!(written.model.score(&[0.5; FEATURES.len()], &mut vec![0.0; written.model.scratch()]).is_finite());
        }
    }

    #[test]
    fn damaged_files_are_refused_with_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        trained(linear()).write(file.path()).unwrap();
        let whole = std::fs::read(file.path()).unwrap();
        for length in (0..whole.len()).step_by(11) {
            refused(&whole[..length], "rudder fit");
        }
        let text = String::from_utf8(whole).unwrap();
        refused(text.replace("\"format\":2", "\"format\":1").as_bytes(), "format is 1");
        refused(text.replace("\"replace\"", "\"plan\"").as_bytes(), "the question \"plan\" and not \"replace\"");
        refused(text.replace("\"interval\":8", "\"interval\":9").as_bytes(), "checksum");
        refused(text.replace("\"interval\":8", "\"interval\":0").as_bytes(), "every 0 minibatches");
        refused(text.replace("\"bias\":0.30000000000000004", "\"bias\":0.3").as_bytes(), "checksum");
        refused(text.replace("\"hits\"", "\"misses\"").as_bytes(), "features are not those");
        refused(text.replace("\"kind\":\"linear\"", "\"kind\":\"oracle\"").as_bytes(), "oracle");
        refused(b"this is something else altogether", "no classifier");
        let absent = Trained::read(Path::new("/nowhere/at/all.json")).unwrap_err().to_string();
        assert!(absent.contains("/nowhere/at/all.json"), "{absent}");
    }

    #[test]
    fn numbers_that_do_not_fit_together_are_refused() {
        let features = FEATURES.len();
        let file = tempfile::NamedTempFile::new().unwrap();
        let backwards = Node::Split { feature: 0, at_most: 0.0, left: 0, right: 1 };
        let stranger = Node::Split { feature: features as u32, at_most: 0.0, left: 1, right: 2 };
        let leaf = Node::Leaf(1.0);
        let trees = |tree: Vec<Node>| Model::Trees(Trees { bias: 0.0, trees: vec![tree] });
        let attention = Attention {
            relaxation: 1.3,
            first: dense(features, 6),
            steps: vec![(dense(2, features), dense(features, 6))],
            last: dense(3, 1),
        };
        for (model, words) in [
            (Model::Linear(Linear { weights: vec![1.0; features + 1], bias: 0.0 }), "weights for"),
            (trees(vec![]), "empty"),
            (trees(vec![backwards, leaf]), "leads nowhere"),
            (trees(vec![stranger, leaf, leaf]), "leads nowhere"),
            (Model::Perceptron(Perceptron { layers: vec![dense(features, 4), dense(5, 1)] }), "layer 1"),
            (Model::Perceptron(Perceptron { layers: vec![dense(features, 4)] }), "4 outputs"),
            (Model::Perceptron(Perceptron::default()), "outputs"),
            (Model::Attention(attention.clone()), "mask of step 0"),
            (Model::Attention(Attention { steps: vec![], ..attention }), "0 steps"),
            (Model::Kernel(Kernel { vectors: vec![vec![0.0; features]], ..Kernel::default() }), "support vectors"),
        ] {
            let cause = trained(model).write(file.path()).unwrap_err().to_string();
            assert!(cause.contains("does not fit together") && cause.contains(words), "{words}: {cause}");
        }
    }
}
