// Feature vectors as they come, and which are nearest to each other.

/** The float32 numbers, little-endian, that stand in base64. */
export function floatsOf(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, place) => view.getFloat32(4 * place, true));
}

/**
 * For each vector the others, the nearest first.
 * @param {ArrayLike<number>[]} vectors of length 1
 * @returns {{index: number, cosine: number}[][]}
 */
export function neighbours(vectors) {
  return vectors.map((vector, own) =>
    vectors
      .map((other, index) => ({ index, cosine: dot(vector, other) }))
      .filter(({ index }) => index !== own)
      .sort((one, other) => other.cosine - one.cosine || one.index - other.index),
  );
}

function dot(one, other) {
  let sum = 0;
  for (let place = 0; place < one.length; place += 1) sum += one[place] * other[place];
  return sum;
}
