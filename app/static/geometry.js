// Where the model looks: the same rules as models/transforms.py and models/pictures.py, which the tests hold
// these functions against.

/**
 * What the model sees of an upright picture, in the picture's pixels.
 * @param {number} width of the picture
 * @param {number} height of the picture
 * @param {{width: number, height: number, crop: string, crop_share: number}} input as in /v1/models
 * @returns {{left: number, top: number, width: number, height: number}}
 */
export function cropBox(width, height, input) {
  let cropWidth = width * input.crop_share;
  let cropHeight = height * input.crop_share;
  if (input.crop !== "squash") {
    const scale = Math.min(width / input.width, height / input.height) * input.crop_share;
    cropWidth = Math.min(input.width * scale, width);
    cropHeight = Math.min(input.height * scale, height);
  }
  return { left: (width - cropWidth) / 2, top: (height - cropHeight) / 2, width: cropWidth, height: cropHeight };
}

/**
 * Where patches begin and end along one side: a pixel goes with the patch whose centre is nearest to it.
 * @param {number} side pixels of the model's input
 * @param {number} patches along that side
 * @param {number} size of a patch in pixels
 * @param {number} stride pixels from one patch to the next
 * @returns {number[]} patches + 1 pixel positions, from 0 to side
 */
export function patchEdges(side, patches, size, stride) {
  const edges = [0];
  for (let patch = 1; patch < patches; patch += 1) {
    edges.push(Math.ceil(((2 * patch - 1) * stride + size - 1) / 2));
  }
  return [...edges, side];
}
