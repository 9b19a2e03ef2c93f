// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.content;

import android.annotation.NonNull;
import android.content.res.AssetManager;

public abstract class Context {
  public native AssetManager getAssets();

  public native ContentResolver getContentResolver();

  @NonNull
  public final native String getString(int id);

  @NonNull
  public final native String getString(int id, Object... values);
}
