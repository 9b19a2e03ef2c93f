package org.example.classifier

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.graphics.Bitmap
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONArray

/** A class or label and its probability, 0 to 1. */
data class Guess(val label: String, val probability: Float)

/** A number that the model computes, in the unit that it was trained with. */
data class Value(val label: String, val number: Float)

/**
 * Classes, the likeliest first; or the labels that the picture has, of which there may be none or several; or values. And
 * what the model took.
 */
data class Answer(val guesses: List<Guess>, val values: List<Value>, val milliseconds: Double)

/**
 * A bitmap enters; its classes, labels or values leave. Resizing, cropping, normalization, probabilities and ranking are in
 * the model, names in the model's metadata. Not for two threads at once.
 */
class Classifier(model: ByteArray) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()

    // Not to be closed before the session that was made with them.
    private val options = OrtSession.SessionOptions()
    private val session: OrtSession = environment.createSession(model, options)
    private val labels: JSONArray? =
        session.metadata.customMetadata["vitexport.labels"]?.takeIf { it != "null" }?.let { JSONArray(it) }

    private val task: String = entry("task")?.trim('"') ?: "classification"

    // From this probability on a label is true; classes are ranked whatever theirs is.
    private val least: Float = if (task == "multi-label") entry("threshold")!!.toFloat() else 0f

    private fun entry(name: String): String? = session.metadata.customMetadata["vitexport.$name"]?.takeIf { it != "null" }

    fun classify(bitmap: Bitmap): Answer {
        val names = if (task == "regression") setOf("values") else setOf("probabilities", "top_indices")
        val shape = longArrayOf(1, bitmap.height.toLong(), bitmap.width.toLong(), 3)
        return OnnxTensor.createTensor(environment, rgb(bitmap), shape, OnnxJavaType.UINT8).use { image ->
            val start = System.nanoTime()
            session.run(mapOf("image" to image), names).use { outputs ->
                val milliseconds = (System.nanoTime() - start) / 1e6
                if (task == "regression") {
                    val numbers = (outputs.get("values").get() as OnnxTensor).floatBuffer
                    val values = List(numbers.remaining()) { Value(name(it), numbers.get(it)) }
                    return Answer(emptyList(), values, milliseconds)
                }
                val probabilities = (outputs.get("probabilities").get() as OnnxTensor).floatBuffer
                val indices = (outputs.get("top_indices").get() as OnnxTensor).longBuffer
                val guesses = List(indices.remaining()) { place ->
                    val index = indices.get(place).toInt()
                    Guess(name(index), probabilities.get(index))
                }
                Answer(guesses.filter { it.probability >= least }, emptyList(), milliseconds)
            }
        }
    }

    private fun name(index: Int): String = labels?.getString(index) ?: index.toString()

    override fun close() {
        session.close()
        options.close()
    }

    /** Red, green and blue of every pixel, row by row. */
    private fun rgb(bitmap: Bitmap): ByteBuffer {
        val bytes = ByteBuffer.allocateDirect(3 * bitmap.width * bitmap.height).order(ByteOrder.nativeOrder())
        // A row at a time: a camera's whole picture in integers may be more than the heap of an app holds.
        val row = IntArray(bitmap.width)
        for (y in 0 until bitmap.height) {
            bitmap.getPixels(row, 0, bitmap.width, 0, y, bitmap.width, 1)
            for (pixel in row) {
                bytes.put((pixel shr 16).toByte()).put((pixel shr 8).toByte()).put(pixel.toByte())
            }
        }
        bytes.rewind()
        return bytes
    }
}
