// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.content;

import android.annotation.NonNull;
import android.annotation.Nullable;
import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.InputStream;

public abstract class ContentResolver {
  public ContentResolver(@Nullable Context context) {}

  @Nullable
  public final native InputStream openInputStream(@NonNull Uri uri) throws FileNotFoundException;
}
