package org.example.classifier

import android.app.Activity
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Matrix
import android.net.Uri
import android.os.Bundle
import android.widget.Button
import android.widget.ImageView
import android.widget.TextView
import androidx.exifinterface.media.ExifInterface
import java.util.concurrent.Executors

/** Shows a picture that the user chooses, and what the model says of it. */
class MainActivity : Activity() {
    // One thread, for the model takes one picture at a time and must not hold up the screen.
    private val worker = Executors.newSingleThreadExecutor()
    private var classifier: Classifier? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_main)
        val button = findViewById<Button>(R.id.choose)
        button.setOnClickListener {
            val intent = Intent(Intent.ACTION_GET_CONTENT).setType("image/*").addCategory(Intent.CATEGORY_OPENABLE)
            startActivityForResult(intent, CHOOSE)
        }
        inBackground {
            classifier = Classifier(assets.open(MODEL).use { it.readBytes() })
            runOnUiThread {
                button.isEnabled = true
                say(getString(R.string.ready))
            }
        }
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val uri = data?.data
        if (requestCode == CHOOSE && resultCode == RESULT_OK && uri != null) {
            inBackground { classify(uri) }
        }
    }

    override fun onDestroy() {
        worker.execute { classifier?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun classify(uri: Uri) {
        val bitmap = decode(uri)
        if (bitmap == null) {
            runOnUiThread { say(getString(R.string.unreadable)) }
            return
        }
        val answer = classifier?.classify(bitmap) ?: return
        val found = answer.guesses.map { getString(R.string.line, it.probability * 100, it.label) }
        val values = answer.values.map { getString(R.string.value, it.number, it.label) }
        val lines = (found + values).ifEmpty { listOf(getString(R.string.nothing)) }
        val shown = forScreen(bitmap)
        runOnUiThread {
            findViewById<ImageView>(R.id.picture).setImageBitmap(shown)
            say((lines + getString(R.string.took, answer.milliseconds)).joinToString("\n"))
        }
    }

    /** The picture in its own size, upright; null where it is none. */
    private fun decode(uri: Uri): Bitmap? {
        val options = BitmapFactory.Options().apply { inPreferredConfig = Bitmap.Config.ARGB_8888 }
        val bitmap = contentResolver.openInputStream(uri)?.use { BitmapFactory.decodeStream(it, null, options) } ?: return null
        val exif = contentResolver.openInputStream(uri)?.use { ExifInterface(it) } ?: return bitmap
        if (exif.rotationDegrees == 0 && !exif.isFlipped) return bitmap
        // Mirrored first, then turned: that is what rotationDegrees means.
        val matrix = Matrix().apply {
            if (exif.isFlipped) postScale(-1f, 1f)
            postRotate(exif.rotationDegrees.toFloat())
        }
        return Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, matrix, false)
    }

    /** Android refuses to draw a bitmap of more than 100 MB, which a camera's whole picture can have. */
    private fun forScreen(bitmap: Bitmap): Bitmap {
        val scale = LONGEST_SIDE_SHOWN / maxOf(bitmap.width, bitmap.height).toFloat()
        if (scale >= 1) return bitmap
        val (width, height) = listOf(bitmap.width, bitmap.height).map { (it * scale).toInt().coerceAtLeast(1) }
        return Bitmap.createScaledBitmap(bitmap, width, height, true)
    }

    private fun inBackground(work: () -> Unit) {
        worker.execute {
            try {
                work()
            } catch (error: Exception) {
                runOnUiThread { say(getString(R.string.failed, error.message ?: error.javaClass.simpleName)) }
            } catch (_: OutOfMemoryError) {
                runOnUiThread { say(getString(if (classifier == null) R.string.no_memory else R.string.too_large)) }
            }
        }
    }

    private fun say(text: String) {
        findViewById<TextView>(R.id.answer).text = text
    }

    private companion object {
        const val CHOOSE = 1
        const val LONGEST_SIDE_SHOWN = 2048
        const val MODEL = "model.onnx"
    }
}
