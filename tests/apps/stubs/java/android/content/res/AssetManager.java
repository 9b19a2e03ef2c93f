// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.content.res;

import android.annotation.NonNull;
import java.io.IOException;
import java.io.InputStream;

public final class AssetManager {
  AssetManager() {}

  @NonNull
  public native InputStream open(@NonNull String name) throws IOException;
}
