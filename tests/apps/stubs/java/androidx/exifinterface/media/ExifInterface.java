// The part of AndroidX's ExifInterface (1.3) that the written project uses, declared and not defined.
package androidx.exifinterface.media;

import androidx.annotation.NonNull;
import java.io.IOException;
import java.io.InputStream;

public class ExifInterface {
  public ExifInterface(@NonNull InputStream stream) throws IOException {}

  public native boolean isFlipped();

  public native int getRotationDegrees();
}
