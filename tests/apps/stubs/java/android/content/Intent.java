// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.content;

import android.annotation.NonNull;
import android.annotation.Nullable;
import android.net.Uri;

public class Intent {
  public static final String ACTION_GET_CONTENT = "android.intent.action.GET_CONTENT";
  public static final String CATEGORY_OPENABLE = "android.intent.category.OPENABLE";

  public Intent(String action) {}

  @NonNull
  public native Intent setType(@Nullable String type);

  @NonNull
  public native Intent addCategory(String category);

  @Nullable
  public native Uri getData();
}
