//! The products of a decoder: of states by weights, and of 32-bit numbers by each other.
//!
//! Weights are kept in 8 bits a number, with rows padded by zeros to a multiple of 256, whatever the file holds: candle has
//! fast x86 kernels for that shape alone, and small models miss it. A CPU that lacks instructions for products of such numbers
//! (VNNI) is faster with 32 bits, which small models are given there.
//!
//! What is of 32 bits is multiplied by `gemm`, as candle does: but candle copies what is not in order, and for each product asks the system how many
//! cores there are, which takes as long as a small product.

use super::gguf::{Gguf, Outcome};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{D, DType, Device, Module, Result, Tensor};

const PAD: usize = 256;
/// Outputs whose dense weights lie together, input by input, as the kernels of `gemm` read them: it copies a whole matrix into that order
/// else, or misses the caches.
const PANEL: usize = 16;

/// Numbers of all weights of a model that is small: they take half a gigabyte.
const SMALL: usize = 1 << 27;

/// How weights are kept.
#[derive(Clone, Copy)]
pub(super) enum Storage {
    Quantized(GgmlDType),
    Dense,
}

/// Weights that states are multiplied by. A state is padded with zeros to `padded` numbers.
pub(super) struct Matrix {
    weights: Weights,
    pub padded: usize,
}

enum Weights {
    Quantized(QMatMul),
    /// Panel by panel, padded with zeros.
    Dense {
        panels: Vec<f32>,
        outputs: usize,
    },
}

impl Storage {
    /// What is fastest here for a model that has so many weights.
    pub fn for_numbers(numbers: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
            if !wide && !is_x86_feature_detected!("avxvnni") {
                // A scale for each 256 numbers, rather than 32, is next best: twice as fast.
                return if numbers <= SMALL { Self::Dense } else { Self::Quantized(GgmlDType::Q8K) };
            }
        }
        Self::Quantized(GgmlDType::Q8_0)
    }
}

impl Matrix {
    /// Reads matrices of the same input, `(name, rows)`, as one, so that the input is read, and quantized, once.
    pub fn from_gguf(gguf: &mut Gguf, parts: &[(String, usize)], columns: usize, storage: Storage) -> Outcome<Self> {
        let read = |(name, rows): &(String, usize)| gguf.dense(name, &[*rows, columns]);
        let dense = parts.iter().map(read).collect::<Outcome<Vec<_>>>()?;
        let matrix = || Self::new(&Tensor::cat(&dense, 0)?.to_dtype(DType::F32)?, storage);
        matrix().map_err(|cause| format!("cannot convert {}: {cause}", parts[0].0))
    }

    fn new(weights: &Tensor, storage: Storage) -> Result<Self> {
        match storage {
            Storage::Quantized(dtype) => Self::quantized(weights, dtype),
            Storage::Dense => Self::dense(weights),
        }
    }

    fn quantized(weights: &Tensor, dtype: GgmlDType) -> Result<Self> {
        let columns = weights.dim(D::Minus1)?;
        let padded = columns.next_multiple_of(PAD);
        let weights = weights.pad_with_zeros(D::Minus1, 0, padded - columns)?;
        let product = QMatMul::from_qtensor(QTensor::quantize(&weights.contiguous()?, dtype)?)?;
        Ok(Self { weights: Weights::Quantized(product), padded })
    }

    fn dense(weights: &Tensor) -> Result<Self> {
        let (outputs, padded) = weights.dims2()?;
        let panels = outputs.div_ceil(PANEL);
        let weights = weights.pad_with_zeros(0, 0, panels * PANEL - outputs)?;
        let panels = weights.reshape((panels, PANEL, padded))?.transpose(1, 2)?.flatten_all()?.to_vec1()?;
        Ok(Self { weights: Weights::Dense { panels, outputs }, padded })
    }

    /// The products of padded states, one after the other.
    pub fn apply(&self, states: Vec<f32>) -> Result<Vec<f32>> {
        let rows = states.len() / self.padded;
        match &self.weights {
            Weights::Quantized(product) => {
                let states = Tensor::from_vec(states, (rows, self.padded), &Device::Cpu)?;
                product.forward(&states)?.flatten_all()?.to_vec1()
            }
            Weights::Dense { panels, outputs } => {
                let states = View::of_rows(&states, rows, self.padded, self.padded);
                let mut products = vec![0.0; rows * outputs];
                for (panel, first) in panels.chunks_exact(self.padded * PANEL).zip((0..*outputs).step_by(PANEL)) {
                    let panel = View::of_rows(panel, self.padded, PANEL.min(outputs - first), PANEL);
                    multiply(states, panel, &mut products[first..], *outputs);
                }
                Ok(products)
            }
        }
    }
}

/// A matrix in a slice, whose first number is the slice's.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    /// From a number to that below it.
    row_stride: usize,
    /// From a number to that on its right.
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows that begin so many numbers after each other.
    pub fn of_rows(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        Self { values, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }
}

/// Writes the product of two matrices into rows that begin `stride` numbers after each other.
///
/// # Panics
/// The shapes do not fit, or a slice is shorter than its matrix.
pub(super) fn multiply(left: View, right: View, into: &mut [f32], stride: usize) {
    let (rows, columns) = (left.rows, right.columns);
    assert_eq!(left.columns, right.rows, "the shapes do not fit");
    assert!(columns <= stride, "rows of the product overlap");
    for (length, rows, columns, row_stride, column_stride) in [
        (left.values.len(), rows, left.columns, left.row_stride, left.column_stride),
        (right.values.len(), right.rows, columns, right.row_stride, right.column_stride),
        (into.len(), rows, columns, stride, 1),
    ] {
        let needed =
            if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 };
        assert!(needed <= length, "a matrix of {rows} by {columns} does not fit in {length} numbers");
    }
    let [left_row, left_column] = [left.row_stride, left.column_stride].map(|stride| stride as isize);
    let [right_row, right_column] = [right.row_stride, right.column_stride].map(|stride| stride as isize);
    // SAFETY: each slice holds all that its shape and strides reach, by the assertions above, and no two numbers of the product are at the
    // same place; what is written is borrowed mutably, and so is not what is read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            left.columns,
            into.as_mut_ptr(),
            1,
            stride as isize,
            false,
            left.values.as_ptr(),
            left_column,
            left_row,
            right.values.as_ptr(),
            right_column,
            right_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    //! Goal: products are those of a plain loop: exact sums of small whole numbers for `multiply`, and for weights within what keeping them in
    //! 8 bits loses. Method: shapes around the sizes of panels, paddings and kernels; matrices within larger ones, and transposed; what lies
    //! between the product's rows stays.
    use super::*;

    /// Whole numbers from -4 to 4.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| (at.wrapping_mul(7919).wrapping_add(seed * 31) % 9) as f32 - 4.0).collect()
    }

    fn plain(left: View, right: View) -> Vec<f32> {
        let at = |view: &View, row, column| view.values[row * view.row_stride + column * view.column_stride];
        let cell = |row, column| (0..left.columns).map(|k| at(&left, row, k) * at(&right, k, column)).sum();
        (0..left.rows).flat_map(|row| (0..right.columns).map(move |column| cell(row, column))).collect()
    }

    #[test]
    fn products_are_those_of_a_plain_loop() {
        for (rows, inner, columns) in [(1, 1, 1), (1, 64, 16), (3, 64, 59), (42, 256, 16), (42, 59, 64), (7, 5, 33)] {
            let (left, right) = (numbers(rows * (inner + 3), 1), numbers(inner * columns + inner * 2 + columns * 2, 2));
            let left = View::of_rows(&left, rows, inner, inner + 3);
            for right in [
                View::of_rows(&right, inner, columns, columns + 2),
                View::of_rows(&right, columns, inner, inner + 2).transposed(),
            ] {
                let (stride, untouched) = (columns + 5, 1e6);
                let mut product = vec![untouched; rows * stride];
                multiply(left, right, &mut product, stride);
                let expected = plain(left, right);
                for (found, expected) in product.chunks_exact(stride).zip(expected.chunks_exact(columns)) {
                    assert_eq!(found[..columns], *expected, "{rows} by {inner} by {columns}");
                    assert_eq!(found[columns..], [untouched; 5]);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not fit in 63 numbers")]
    fn a_slice_shorter_than_its_matrix_is_refused() {
        multiply(View::of_rows(&[0.0; 63], 2, 32, 32), View::of_rows(&[0.0; 32], 32, 1, 1), &mut [0.0; 2], 1);
    }

    #[test]
    fn weights_in_any_storage_give_the_same_products() {
        for (rows, outputs, inputs) in [(1, 16, 256), (5, 40, 64), (17, 7, 300)] {
            let weights = numbers(outputs * inputs, 3);
            let states = numbers(rows * inputs, 4);
            let by_hand = plain(
                View::of_rows(&states, rows, inputs, inputs),
                View::of_rows(&weights, outputs, inputs, inputs).transposed(),
            );
            let tensor = Tensor::from_slice(&weights, (outputs, inputs), &Device::Cpu).unwrap();
            for (storage, tolerance) in [
                (Storage::Dense, 0.0),
                (Storage::Quantized(GgmlDType::Q8_0), 0.01),
                (Storage::Quantized(GgmlDType::Q8K), 0.01),
            ] {
                let matrix = Matrix::new(&tensor, storage).unwrap();
                let mut padded = vec![0.0; rows * matrix.padded];
                for (to, from) in padded.chunks_exact_mut(matrix.padded).zip(states.chunks_exact(inputs)) {
                    to[..inputs].copy_from_slice(from);
                }
                let products = matrix.apply(padded).unwrap();
                assert_eq!(products.len(), by_hand.len());
                let scale = by_hand.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                for (found, expected) in products.iter().zip(&by_hand) {
                    assert!((found - expected).abs() <= tolerance * scale, "{found} for {expected}");
                }
            }
        }
    }
}
