// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.graphics;

import android.annotation.Nullable;
import java.io.InputStream;

public class BitmapFactory {
  public static class Options {
    public Bitmap.Config inPreferredConfig;
  }

  @Nullable
  public static native Bitmap decodeStream(@Nullable InputStream stream, @Nullable Rect padding, @Nullable Options options);
}
